"""Wall-clock seconds by part of a run."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Stopwatch:
    """Sums seconds by part. One part runs at a time, so the parts add up to the elapsed time.

    Example:
        >>> watch = Stopwatch()
        >>> watch.start("setup")
        >>> with watch.during("scoring"):
        ...     time.sleep(0.02)
        >>> watch.stop()
        >>> list(watch.seconds), watch.seconds["setup"] < 0.02 <= watch.seconds["scoring"]
        (['setup', 'scoring'], True)
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._running: str | None = None
        self._since = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each part so far."""
        self.start(self._running)
        return dict(self._seconds)

    def start(self, part: str | None) -> None:
        """Stops the running part and starts another.

        Args:
            part: Name of the part to start; None for none.
        """
        now = time.monotonic()
        if self._running is not None:
            self._seconds[self._running] = self._seconds.get(self._running, 0.0) + now - self._since
        self._running, self._since = part, now

    def stop(self) -> None:
        """Stops the running part."""
        self.start(None)

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds seconds that were measured elsewhere.

        Args:
            seconds: Seconds by part.
        """
        for part, value in seconds.items():
            self._seconds[part] = self._seconds.get(part, 0.0) + value

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Pauses the running part for another one.

        Args:
            part: Name of the other part.
        """
        interrupted = self._running
        self.start(part)
        try:
            yield
        finally:
            self.start(interrupted)
