"""Fixtures for all tests."""

from __future__ import annotations

import signal

import pytest


def _instruction_sets() -> list[str]:
    from indexer_kernels.dispatch import instruction_sets

    return instruction_sets()


@pytest.fixture(params=_instruction_sets())
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set that the kernels have and this machine can run, forced in turn."""
    monkeypatch.setenv("NEURON_INDEXER_ISA", request.param)
    return str(request.param)


@pytest.fixture(autouse=True, scope="session")
def signals_reach_children() -> None:
    """Programs that tests start take Ctrl-C and hang-up, also where the tests were started to ignore them."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
