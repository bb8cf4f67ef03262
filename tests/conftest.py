"""Fixtures for all tests."""

from __future__ import annotations

import pytest


def _instruction_sets() -> list[str]:
    from indexer_kernels.dispatch import instruction_sets

    return instruction_sets()


@pytest.fixture(params=_instruction_sets())
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set that the kernels have and this machine can run, forced in turn."""
    monkeypatch.setenv("NEURON_INDEXER_ISA", request.param)
    return str(request.param)
