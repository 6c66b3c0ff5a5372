"""What a callback shows on the terminal."""

from lightning.pytorch import LightningModule, Trainer
from rich.console import RenderableType

from lit_semantic_peft.reports import RunFolder
from lit_semantic_peft.terminal import TextConsole


def next_steps(folder: RunFolder) -> list[str]:
    """Where the adapter is, and the command that asks it; nothing where the command line did not make the run.

    Args:
        folder: The run folder.
    """
    paths = folder.paths
    if not paths.adapter.is_dir() or not paths.config.is_file():
        return []
    command = f"lit-semantic-peft predict --config {paths.config} --model.adapter {paths.adapter}"
    return [f"Adapter: {paths.adapter.absolute()}", f"Ask it: {command} --chat"]


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
