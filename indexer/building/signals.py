"""Ctrl-C and a scheduler's SIGTERM in the middle of a batch: heard at once, obeyed when the batch is done."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

_HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# a person who is not heard waits longer before the second Ctrl-C
_ONE_REQUEST_SECONDS = 1.0


def end_as_by_ctrl_c() -> None:
    """Let SIGTERM, of a scheduler, and SIGHUP, of a terminal that closes, raise KeyboardInterrupt, too.

    One that this program was started to ignore, as by nohup, stays ignored.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


class StopRequest:
    """Within the block, a signal that would raise KeyboardInterrupt sets `requested`; Ctrl-C again raises it.

    A batch that is half processed cannot be saved, so stopping waits for its end.
    A wish to stop may arrive several times: from the terminal, from the scheduler, and passed on by whoever
    started this process. So only a second Ctrl-C, a second after the first signal or later, is another wish.
    Does nothing outside the main thread.
    """

    def __init__(self) -> None:
        self.requested = False
        self._heard = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _HEARD:
                handler = signal.getsignal(number)
                if handler is signal.default_int_handler:
                    self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._heard = True, now
        elif number == signal.SIGINT and now - self._heard >= _ONE_REQUEST_SECONDS:
            raise KeyboardInterrupt
