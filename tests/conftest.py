"""Fixtures for all tests."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Iterator

import pytest


def _import_triton_for_its_interpreter() -> None:
    """Triton reads the variable when it and kernels are imported; elsewhere it stays unset."""
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        importlib.import_module("indexer_kernels.statistics_triton")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
    finally:
        del os.environ["TRITON_INTERPRET"]


_import_triton_for_its_interpreter()


def _instruction_sets() -> list[str]:
    from indexer_kernels._cpp import instruction_sets

    return instruction_sets()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: small models lose more by sharing than they win."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.fixture
def triton_interpreter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels "triton" run in the interpreter, and memory that torch has not set is full of NaN."""
    import torch
    from indexer_kernels import activations_triton, statistics_triton

    from tests.frames import with_room_for_frames
    from tests.gluon_interpreter import interpreted

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for module, name in ((statistics_triton, "gather"), (activations_triton, "activate_rows")):
        monkeypatch.setattr(module, name, interpreted(getattr(module, name)))
    torch.use_deterministic_algorithms(True)
    request.node.obj = with_room_for_frames(request.node.obj)
    yield
    torch.use_deterministic_algorithms(False)
