"""A GPU whose memory runs out somewhere in a forward: every layer still takes every token once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from indexer_kernels import Keep, Sequences
from torch import Tensor, nn

from indexer.building.states import States
from indexer.errors import IndexerError
from indexer.models import LoadedModel, Runner, Values, adapt
from indexer.names import Key
from tests.tiny_batches import Keeper, TinyBatch, mlps, tiny_batch
from tests.tiny_models import LAYERS, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTHS = (20, 13, 5, 20, 7)
Fails = Callable[[], bool]


class Seen(Keeper):
    """Keeps what every layer takes by document, and fails before or after taking it when it is told to."""

    def __init__(self, fails: Fails) -> None:
        super().__init__()
        self.fails = fails
        self.documents: dict[int, dict[int, Tensor]] = {}

    def take(self, key: Key, values: Values) -> None:
        maybe_fail(self.fails)
        super().take(key, values)

    def _keep(self, call: str, layer: int, activations: Tensor, sequences: Sequences) -> None:
        found = self.documents.setdefault(layer, {})
        for first, length, document in zip(
            sequences.start, sequences.length, sequences.document, strict=True
        ):
            assert document not in found, f"layer {layer} took document {document} twice"
            found[int(document)] = activations[first : first + length].clone()


def maybe_fail(fails: Fails) -> None:
    if fails():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def at(*numbers: int) -> Fails:
    """Whether this is one of the calls asked for, counted from 0."""
    calls = iter(range(10**6))
    return lambda: next(calls) in numbers


@contextmanager
def failing_modules(loaded: LoadedModel, fails: Fails) -> Iterator[None]:
    """Every linear layer and norm of the model may fail."""
    kinds = (nn.Linear, nn.LayerNorm)
    handles = [
        module.register_forward_pre_hook(lambda *_: maybe_fail(fails))
        for module in loaded.model.modules()
        if isinstance(module, kinds) or type(module).__name__ in ("Conv1D", "LlamaRMSNorm")
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(name: str, fails: Fails, hooks: bool) -> tuple[dict[int, dict[int, Tensor]], Runner]:
    seen, loaded = Seen(fails), adapt(tiny(name), name=name)
    probes = mlps(loaded, hooks=hooks)
    with failing_modules(loaded, fails), Runner(loaded, probes, seen.take, matmul="torch") as runner:
        runner.run(tiny_batch(*LENGTHS))
    return seen.documents, runner


@pytest.mark.parametrize("hooks", [False, True], ids=["fused", "hook"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_every_layer_takes_every_sequence_once(name: str, hooks: bool) -> None:
    calls = iter(range(10**6))
    expected, runner = run(name, lambda: next(calls) < 0, hooks)
    assert runner.most_tokens > 10**9
    points = next(calls)
    assert points >= 3 * LAYERS
    for point in range(0, points, 2):
        # the half fails as well, a few calls later
        documents, runner = run(name, at(point, point + 4), hooks)
        assert runner.most_tokens <= len(LENGTHS) * max(LENGTHS) // 2
        for layer, found in expected.items():
            assert sorted(documents[layer]) == sorted(found)
            for document, activations in found.items():
                torch.testing.assert_close(documents[layer][document], activations, rtol=1e-4, atol=1e-5)


def test_statistics_count_every_token_once() -> None:
    loaded, batch = adapt(tiny("llama"), name="llama"), tiny_batch(*LENGTHS)
    probes = mlps(loaded, keep=Keep(top=2, bottom=2))
    for point in range(0, 12, 3):
        states = States(probes, kernels="cpp", threads=1)
        runner = Runner(loaded, probes, states.take, matmul="torch")
        with failing_modules(loaded, at(point)), runner:
            runner.run(batch)
        for statistics in states.statistics.values():
            statistics.settle()
            assert statistics.count == sum(LENGTHS)
            assert statistics.histogram is not None
            np.testing.assert_array_equal(statistics.histogram.counts.sum(axis=1), sum(LENGTHS))


def test_later_batches_are_halved_at_once() -> None:
    failures, loaded = at(3), adapt(tiny("gpt2"), name="gpt2")
    rows: list[int] = []
    probes = mlps(loaded)
    with failing_modules(loaded, failures), Runner(loaded, probes, Keeper().take, matmul="torch") as runner:
        handle = loaded.model.register_forward_pre_hook(
            lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        for _ in range(2):
            runner.run(tiny_batch(8, 8, 8, 8))
        handle.remove()
    assert rows == [4, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (tiny_batch(20), r"out of memory on cpu with 1 x 20 tokens: not even one sequence fits"),
        (
            TinyBatch(tiny_batch(6, 6).token_ids, np.array([6, 6]), fixed=True),
            r"with 2 x 6 tokens, and --numerics reproducible keeps the shapes",
        ),
    ],
)
def test_what_cannot_be_halved_is_told(batch: TinyBatch, told: str) -> None:
    loaded = adapt(tiny("gpt2"), name="gpt2")
    probes = mlps(loaded)
    with failing_modules(loaded, lambda: True), pytest.raises(IndexerError, match=told):
        Runner(loaded, probes, Keeper().take, matmul="torch").run(batch)


def test_rows_without_a_sequence_are_activated_and_not_counted() -> None:
    from indexer_kernels import Statistics

    gate = torch.randn(9, 40)
    for kernels in ("cpp", "reference"):
        statistics = Statistics.empty(40, Keep(top=2, bottom=2), kernels=kernels)
        out = statistics.activate("gelu", gate, None, Sequences.none(9))
        torch.testing.assert_close(out, nn.functional.gelu(gate), rtol=1e-5, atol=1e-6)
        assert statistics.count == 0
        assert statistics.histogram is not None
        statistics.settle()
        assert statistics.histogram.counts.sum() == 0
