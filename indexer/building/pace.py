"""When a running build makes a checkpoint and writes to its log."""

from __future__ import annotations

import time

EVENT_SECONDS = 10.0
# a checkpoint waits until the work since the last one took so many times as long as that one did
LEAST_RATIO = 100.0


class Pace:
    """Checkpoints every so many seconds, rarer where they take long, so that they cost 1% at most."""

    def __init__(self, checkpoint_seconds: float) -> None:
        self._wanted = checkpoint_seconds
        self._wait = checkpoint_seconds
        self._checkpoint = self._event = time.perf_counter()

    def checkpoint_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.perf_counter() - self._checkpoint >= self._wait

    def took(self, seconds: float) -> None:
        """A checkpoint was made and took so long."""
        # asked for after every batch, it is made after every batch
        self._wait = max(self._wanted, LEAST_RATIO * seconds) if self._wanted else 0.0
        self._checkpoint = time.perf_counter()

    def event_due(self) -> bool:
        """Whether it is time for a line in the log; the time starts anew then."""
        due = time.perf_counter() - self._event >= EVENT_SECONDS
        if due:
            self._event = time.perf_counter()
        return due
