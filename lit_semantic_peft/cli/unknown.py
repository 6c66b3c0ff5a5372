"""What is said of a setting that does not exist."""

import difflib
from collections.abc import Collection, Sequence

from lit_semantic_peft.data.moved import moved_to

SEE_HELP = "See --help_all for all options."


def moved(keys: Sequence[str]) -> str | None:
    """The message for the keys that were valid once; None where there is none.

    Args:
        keys: As on the command line.
    """
    said = [moved_to(keys)]
    if any(key.startswith("data.base_model") for key in keys):
        said.append("`data.base_model` is now `model.base_model` alone: the data module takes it from the module")
    return ", ".join(one for one in said if one) or None


def nearest(unknown: str, known: Collection[str]) -> str | None:
    """The nearest valid key; None where the key is valid, so that its value is at fault, or none is near.

    Args:
        unknown: A key.
        known: All valid keys.
    """
    near = [] if unknown in {*known, "config"} else difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
    return near[0] if near else None


def unknown_setting(keys: Sequence[str], known: Collection[str], place: str = "") -> str:
    """The message for keys that are not valid.

    Args:
        keys: At least one.
        known: All valid keys.
        place: Where they stand, such as `fit.yaml: `.
    """
    if (said := moved(keys)) is not None:
        return f"{place}{said}."
    near = nearest(keys[0], known)
    suggestion = f"\nDid you mean `{near}`?" if near else ""
    return f"{place}there is no setting `{keys[0]}`.{suggestion}\n{SEE_HELP}"
