"""Showing what can be shown: a part of the report that fails is left out with its reason, and the rest stays."""

import logging
from collections.abc import Callable
from typing import TypeVar

from lit_semantic_peft.reports.phrases import cut

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_Other = TypeVar("_Other")
_LONGEST_REASON = 300


class Attempts:
    """Makes the parts of a report one by one and keeps the reasons of those that failed.

    Attributes:
        failures: A sentence for each part that is left out.
    """

    def __init__(self) -> None:
        self.failures: list[str] = []

    def make(self, what: str, part: Callable[[], _T], otherwise: _Other) -> _T | _Other:
        """A part, or what stands for it where it cannot be made; then the log warns.

        Args:
            what: Name of the part, in the plural or with its article.
            part: Makes it.
            otherwise: Returned where `part` raises.
        """
        try:
            return part()
        except Exception as error:  # whatever a library raises about one part is no reason to lose the others
            reason = cut(" ".join(f"{type(error).__name__}: {error}".split()), _LONGEST_REASON)
            self.failures.append(f"{what}: {reason}")
            logger.warning("Left out of the report: %s", self.failures[-1])
            return otherwise
