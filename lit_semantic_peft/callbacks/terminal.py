"""What a callback shows on the terminal."""

from lightning.pytorch import LightningModule, Trainer
from rich.console import RenderableType

from lit_semantic_peft.terminal import TextConsole


def show(trainer: Trainer, pl_module: LightningModule, *lines: RenderableType) -> None:
    """Prints below the progress bar, which would otherwise stay the last line.

    Texts are shown as they are: no markup in them is read, and no path is broken over lines.

    Args:
        trainer: The trainer, at the end of a stage.
        pl_module: The module.
        lines: What to print, in order.
    """
    if trainer.progress_bar_callback is not None:
        trainer.progress_bar_callback.teardown(trainer, pl_module, str(trainer.state.fn))
    console = TextConsole(highlight=False)
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, str))
