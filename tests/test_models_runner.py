"""Both paths give the same activations, each sequence as if alone; nothing is run after the last."""

from __future__ import annotations

import gc
import weakref
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from indexer.errors import IndexerError
from indexer.models import LoadedModel, Runner, adapt
from indexer.models.forward import call_model
from indexer.models.matmul import linear
from indexer.models.probe import Probe, Values, Workspace, groups_of
from indexer.names import MLP, Key
from tests.tiny_batches import Keeper, TinyBatch, mlps, tiny_batch
from tests.tiny_models import BIDIRECTIONAL, FUSED, HOOKED, LAYERS, fresh, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
DTYPES = [torch.float32, torch.bfloat16]
# of the largest magnitude in a layer; two roundings of a 16-bit value, grown over three layers
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}

_adapted: dict[tuple[str, torch.dtype], LoadedModel] = {}
_found: dict[tuple[str, torch.dtype, bool], list[Probe]] = {}


def adapted(name: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    if (name, dtype) not in _adapted:
        _adapted[name, dtype] = adapt(tiny(name, dtype), name=name)
    return _adapted[name, dtype]


def probes(loaded: LoadedModel, hooks: bool = False) -> list[Probe]:
    key = (loaded.provenance["name"], loaded.dtype, hooks)
    if _adapted.get(key[:2]) is not loaded:
        return mlps(loaded, hooks=hooks)
    if key not in _found:
        _found[key] = mlps(loaded, hooks=hooks)
    return _found[key]


def run(loaded: LoadedModel, batch: TinyBatch, hooks: bool = False, **options: Any) -> Keeper:
    keeper = Keeper()
    with Runner(loaded, probes(loaded, hooks), keeper.take, **options) as runner:
        runner.run(batch)
    return keeper


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype == dtype
    bound = TOLERANCE[dtype] * float(expected.float().abs().max())
    assert float((actual.float() - expected.float()).abs().max()) <= bound


def by_plain_hooks(loaded: LoadedModel, batch: TinyBatch) -> dict[int, Tensor]:
    """The activations of a whole forward pass of transformers with its usual mask, through other hooks."""
    seen: dict[int, Tensor] = {}
    handles = []
    for probe in probes(loaded):

        def keep(module: nn.Module, args: tuple[Tensor], number: int = probe.key.layer) -> None:
            seen[number] = args[0].reshape(-1, args[0].shape[-1]).clone()

        handles.append(loaded.model.get_submodule(probe.place).register_forward_pre_hook(keep))
    mask = torch.from_numpy((np.arange(batch.token_ids.shape[1]) < batch.length[:, None]).astype(np.int64))
    with torch.inference_mode():
        loaded.model(input_ids=torch.from_numpy(batch.token_ids), attention_mask=mask)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUSED + HOOKED)
def test_both_paths_equal_the_plain_model(name: str, dtype: torch.dtype) -> None:
    loaded, batch = adapted(name, dtype), tiny_batch(20, 13, 5, 20)
    counted = torch.from_numpy(batch.sequences().counted)
    expected = by_plain_hooks(loaded, batch)
    fused, hooked = run(loaded, batch, matmul="torch"), run(loaded, batch, matmul="torch", hooks=True)
    assert hooked.calls == [f"read {layer}" for layer in range(LAYERS)]
    assert fused.calls == [f"{'read' if name in HOOKED else 'made'} {layer}" for layer in range(LAYERS)]
    for layer in range(LAYERS):
        assert float(expected[layer].float().std()) > 0.01
        close(fused.layer(layer)[counted], expected[layer][counted], dtype)
        close(hooked.layer(layer)[counted], expected[layer][counted], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUSED)
def test_the_model_goes_on_as_before(name: str, dtype: torch.dtype) -> None:
    loaded, batch = adapted(name, dtype), tiny_batch(12, 12)
    keeper, ids, workspace = Keeper(), torch.from_numpy(batch.token_ids), Workspace(loaded.model)
    workspace.begin(batch.sequences(), chunk_tokens=12)
    assert len(workspace.groups) == 2
    with torch.inference_mode(), ExitStack() as stack:
        expected = call_model(loaded.model, ids)
        for probe in probes(loaded):
            assert probe.fused
            take = partial(keeper.take, probe.key)
            stack.enter_context(probe.attach(take, workspace, last=False))
        close(call_model(loaded.model, ids), expected, dtype)


@pytest.mark.parametrize("hooks", [False, True], ids=["fused", "hook"])
@pytest.mark.parametrize("name", FUSED + HOOKED)
def test_every_sequence_is_run_as_if_alone(name: str, hooks: bool) -> None:
    loaded, batch = adapted(name), tiny_batch(3, 24, 17, 1, 11)
    together = run(loaded, batch, hooks=hooks)
    width = batch.token_ids.shape[1]
    for sequence, length in enumerate(batch.length):
        alone = run(loaded, batch.alone(sequence), hooks=hooks)
        for layer in range(LAYERS):
            rows = together.layer(layer)[sequence * width : sequence * width + length]
            close(rows, alone.layer(layer), torch.float32)


@pytest.mark.parametrize("name", ["gpt2", "bert", "phi3", "opt"])
@pytest.mark.parametrize("chunk_tokens", [1, 20, 40, 41, 1000])
def test_chunks_change_nothing(name: str, chunk_tokens: int) -> None:
    loaded, batch = adapted(name), tiny_batch(20, 20, 7, 20, 1)
    whole, parts = run(loaded, batch), run(loaded, batch, chunk_tokens=chunk_tokens)
    for layer in range(LAYERS):
        close(parts.layer(layer), whole.layer(layer), torch.float32)
    sizes = [sequences.tokens for sequences in parts.shown[: len(parts.shown) // LAYERS]]
    assert sum(sizes) == 100
    assert all(size <= max(chunk_tokens, 20) for size in sizes)
    assert len(sizes) == {1: 5, 20: 5, 40: 3, 41: 3, 1000: 1}[chunk_tokens]


def test_groups_hold_whole_sequences_and_every_row() -> None:
    sequences = tiny_batch(4, 9, 2).sequences()
    groups = groups_of(sequences, 18)
    assert [(group.first_row, group.last_row) for group in groups] == [(0, 18), (18, 27)]
    assert [group.sequences.length.tolist() for group in groups] == [[4, 9], [2]]
    assert groups[1].sequences.token_ids.tolist() == sequences.token_ids[18:].tolist()


@pytest.mark.parametrize("hooks", [False, True], ids=["fused", "hook"])
@pytest.mark.parametrize("name", FUSED)
def test_onednn_changes_rounding_only(name: str, hooks: bool) -> None:
    loaded, batch = adapted(name), tiny_batch(20, 13, 20)
    expected = run(loaded, batch, hooks=hooks, matmul="torch")
    actual = run(loaded, batch, hooks=hooks, matmul="onednn")
    assert actual.calls == expected.calls
    for layer in range(LAYERS):
        close(actual.layer(layer), expected.layer(layer), torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_in_16_bits_onednn_rounds_each_product_once(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.models.matmul._by_itself", lambda dtype: False)
    loaded, batch = adapted(name, dtype), tiny_batch(20, 13, 20)
    expected, actual = (run(loaded, batch, matmul=matmul) for matmul in ("torch", "onednn"))
    for layer in range(LAYERS):
        close(actual.layer(layer), expected.layer(layer), dtype)
    x, weight, bias = torch.randn(3, 5, 33), torch.randn(33, 7), torch.randn(7)
    x, weight, bias = (part.to(dtype) for part in (x, weight, bias))
    exact = (x.double() @ weight.double() + bias.double()).to(dtype)
    assert torch.equal(linear(x, weight.t(), bias), exact)


def runner(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Runner:
    loaded = adapted(name, dtype)
    return Runner(loaded, probes(loaded), Keeper().take, **options)


def test_which_matrix_product_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runner("gpt2").onednn
    assert not runner("gpt2", matmul="torch").onednn
    for has_instructions in (False, True):
        monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda has=has_instructions: has)
        assert runner("gpt2").onednn
        assert runner("gpt2", torch.bfloat16).onednn is not has_instructions
    with pytest.raises(
        IndexerError, match=r"matmul onednn: torch needs no help for torch\.bfloat16 on cpu; take auto"
    ):
        runner("gpt2", torch.bfloat16, matmul="onednn")
    with pytest.raises(IndexerError, match="matmul fast: choose among auto, torch, onednn"):
        runner("gpt2", matmul="fast")


def test_a_torch_without_onednn_multiplies_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not runner("gpt2").onednn
    with pytest.raises(IndexerError, match="matmul onednn: this torch was built without it; take auto"):
        runner("gpt2", matmul="onednn")


class Log(TorchDispatchMode):
    """The torch operations that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append(str(func))
        return func(*args, **(kwargs or {}))


class Marking(Keeper):
    """Notes how many operations had been run when it was called last."""

    log: Log
    mark: int = 0

    def _keep(self, *args: Any) -> None:
        super()._keep(*args)
        self.mark = len(self.log.operations)


@pytest.mark.parametrize("hooks", [False, True], ids=["fused", "hook"])
@pytest.mark.parametrize("name", FUSED + HOOKED)
def test_nothing_is_run_after_the_last_site(name: str, hooks: bool) -> None:
    loaded, batch, keeper = adapted(name), tiny_batch(9, 5), Marking()
    blocks: list[int] = []
    found = probes(loaded, hooks)
    path = found[0].place.split(".0.")[0]
    handles = [
        block.register_forward_pre_hook(lambda module, args, number=number: blocks.append(number))
        for number, block in enumerate(loaded.model.get_submodule(path).children())
    ]
    with Runner(loaded, [found[1]], keeper.take) as runner, Log() as keeper.log:
        runner.run(batch)
    for handle in handles:
        handle.remove()
    assert blocks == [0, 1]
    assert [call.split()[1] for call in keeper.calls] == ["1"]
    assert keeper.mark > 0
    assert keeper.log.operations[keeper.mark :] == []


@pytest.mark.parametrize("name", [*sorted(BIDIRECTIONAL), "gpt2", "llama"])
def test_masks_only_where_they_are_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, masks = adapted(name), []

    def spy(model: nn.Module, ids: Tensor, mask: Tensor | None, target: None) -> Tensor:
        masks.append(mask)
        return call_model(model, ids, mask, target)

    monkeypatch.setattr("indexer.models.runner.call_model", spy)
    run(loaded, tiny_batch(6, 6))
    run(loaded, tiny_batch(6, 2))
    assert masks[0] is None
    assert (masks[1] is None) == (name not in BIDIRECTIONAL)


def test_scratch_memory_is_shared_by_layers_and_batches() -> None:
    loaded, places = adapted("llama"), set()

    class Watching(Keeper):
        def take(self, key: Key, values: Values) -> None:
            places.add(values.matrix.data_ptr())
            super().take(key, values)

    with Runner(loaded, probes(loaded), Watching().take, matmul="torch") as runner:
        for _ in range(3):
            runner.run(tiny_batch(8, 8))
    assert len(places) == 1


@pytest.mark.parametrize("name", ["bert", "gpt2", "opt"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    loaded = adapt(fresh(name), name=name)
    run(loaded, tiny_batch(5))
    run(loaded, tiny_batch(5), hooks=True)

    class Failing(Keeper):
        def _keep(self, *args: Any) -> None:
            raise KeyboardInterrupt

    for hooks in (False, True):
        with (
            pytest.raises(KeyboardInterrupt),
            Runner(loaded, probes(loaded, hooks), Failing().take) as runner,
        ):
            runner.run(tiny_batch(5))
    for module in loaded.model.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_pre_hooks


def test_a_runner_works_without_a_with_statement() -> None:
    loaded, keeper = adapted("gpt2"), Keeper()
    Runner(loaded, mlps(loaded, [0, 2]), keeper.take).run(tiny_batch(5))
    assert keeper.calls == ["made 0", "made 2"]


def test_transformers_gives_no_advice_meanwhile() -> None:
    from transformers.utils import logging

    class Listening(Keeper):
        def _keep(self, *args: Any) -> None:
            assert logging.get_verbosity() == logging.ERROR

    before = logging.get_verbosity()
    Runner(adapted("gpt2"), probes(adapted("gpt2")), Listening().take).run(tiny_batch(5, 3))
    assert logging.get_verbosity() == before != logging.ERROR


def test_a_probe_that_a_batch_does_not_reach_is_told() -> None:
    loaded = adapted("gpt2")
    first, second, third = probes(loaded)
    keeper = Keeper()
    with pytest.raises(IndexerError, match=r"h\.2\.mlp\.c_proj: the model ran a batch without it"):
        # in another order than the model's
        Runner(loaded, [first, third, second], keeper.take).run(tiny_batch(5))
    assert keeper.calls == ["made 0", "made 1"]


def test_values_that_nobody_asked_for_are_made_all_the_same() -> None:
    loaded, batch, keeper = adapted("llama"), tiny_batch(9, 4), Keeper()

    def take(key: Key, values: Values) -> None:
        if key == (MLP, LAYERS - 1):
            keeper.take(key, values)

    Runner(loaded, probes(loaded), take).run(batch)
    assert torch.equal(keeper.layer(LAYERS - 1), run(loaded, batch).layer(LAYERS - 1))


def test_token_ids_without_embedding() -> None:
    batch = tiny_batch(5)
    batch.token_ids[0, 2] = 97
    with pytest.raises(IndexerError, match="token id 97: the model has embeddings for 97 tokens"):
        run(adapted("gpt2"), batch)


def test_nothing_of_a_forward_pass_is_held_after_it() -> None:
    loaded, made = adapted("llama"), []
    # where the forward pass ends, by an exception
    last = loaded.model.get_submodule(f"layers.{LAYERS - 1}.mlp")
    last.register_forward_pre_hook(lambda module, args: made.append(weakref.ref(args[0])))
    gc.disable()
    try:
        run(loaded, tiny_batch(6, 6))
    finally:
        gc.enable()
    assert made
    assert all(reference() is None for reference in made)
