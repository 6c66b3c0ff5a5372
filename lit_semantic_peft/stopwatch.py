"""Wall-clock seconds by part of a run."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class Stopwatch:
    """Sums seconds by part. One part runs at a time, so the parts add up to the elapsed time.

    Args:
        clock: Gives the time in seconds from any start; it never goes back.

    Example:
        >>> times = iter([0.0, 2.0, 7.0, 7.5])
        >>> watch = Stopwatch(clock=lambda: next(times))
        >>> watch.start("setup")
        >>> with watch.during("scoring"):  # from 2.0 to 7.0
        ...     pass
        >>> watch.seconds
        {'setup': 2.5, 'scoring': 5.0}
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._running: str | None = None
        self._since = 0.0

    def fresh(self) -> "Stopwatch":
        """Another stopwatch with the same clock."""
        return Stopwatch(self._clock)

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
        now = self._clock()
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
