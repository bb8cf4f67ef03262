"""A wish to stop that arrives several times is one wish; see indexer.building.signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from indexer.building import signals
from indexer.building.signals import StopRequest, end_as_by_ctrl_c

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def as_in_a_program() -> Iterator[None]:
    before = {number: signal.signal(number, signal.default_int_handler) for number in ALL}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("first", ALL)
def test_from_the_terminal_and_from_whoever_passes_it_on(first: signal.Signals) -> None:
    with StopRequest() as stop:
        assert not stop.requested
        for number in (first, *ALL, *ALL):
            os.kill(os.getpid(), number)
            assert stop.requested
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), first)


def test_a_person_who_asks_again_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += 2
        # a scheduler that becomes impatient sends SIGKILL
        for number in (signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_a_program_was_started_to_ignore_stays_ignored() -> None:
    program = (
        "import signal\n"
        "from indexer.building.signals import end_as_by_ctrl_c\n"
        "end_as_by_ctrl_c()\n"
        "print(*(signal.getsignal(number) is signal.default_int_handler for number in (15, 1)))\n"
    )
    command = [sys.executable, "-c", program]
    for before, expected in (
        ("", "True True"),
        ("trap '' HUP; ", "True False"),
        ("trap '' TERM; ", "False True"),
    ):
        done = subprocess.run(
            ["sh", "-c", f'{before}exec "$@"', "sh", *command], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == expected.split()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_as_by_ctrl_c()
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
