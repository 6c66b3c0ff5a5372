"""What `--help_all` and the reference say of Lightning's options: without its defaults, which are not always ours."""

import re

_OURS = {
    "ckpt_path": "`last` for the newest checkpoint of the run folder, or the path of a checkpoint file.",
    "print_config": "Show what differs from the defaults, or every key, and stop.",
    "seed_everything": "Seed of everything that is random; true draws one.",
    "weights_only": "Whether a checkpoint may hold nothing but tensors and plain values.",
    "trainer.logger": "Where scalars are logged. Null or true: a CSV file in the run folder; false: nowhere.",
    "trainer.max_epochs": "Stop after so many passes over the facts. Null: `max_steps` decides.",
    "trainer.max_steps": "Stop after so many optimizer steps. -1: `max_epochs` decides, or the recipe.",
    "trainer.enable_checkpointing": "Cannot be false for `fit`: what is trained would be lost. The section "
    "`checkpoint` says which checkpoints stay.",
    "trainer.enable_progress_bar": "Whether a terminal shows a bar.",
    "trainer.enable_model_summary": "Whether a table of the model's layers is shown.",
    "trainer.default_root_dir": "The run folder: everything that a run writes is in it.",
}
_DEFAULT = re.compile(r"(?:If not set, d|D)efault(?:s to)?:? ?[`\d]|By default it will be set to ")


def words(key: str, text: str) -> str:
    """The help of one option as plain words.

    Args:
        key: The option.
        text: Lightning's help of it, in reStructuredText.
    """
    if key in _OURS:
        return _OURS[key]
    text = _DEFAULT.split(" ".join(text.split()))[0]
    text = re.sub(r"Disabled by default \(`*\S+\)\. ?", "", text)
    return re.sub(r":\w+:`~?([^`]+)`|``([^`]+)``", lambda found: f"`{found[1] or found[2]}`", text).strip()
