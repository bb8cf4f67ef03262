"""torch.compile around the MLPs: whole graphs, one for all blocks alike, and the same activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import indexer
from indexer.building.run import build
from indexer.config.build import BuildConfig
from indexer.config.options import build_config
from indexer.errors import IndexerError
from indexer.models import Runner, adapt
from tests import tiny_models
from tests.real_model import minilm
from tests.tiny_batches import Keeper, mlps, tiny_batch
from tests.tiny_models import fresh, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
BATCHES = [tiny_batch(20, 13, 5, 20), tiny_batch(11, 8), tiny_batch(31, 8, 4), tiny_batch(2)]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Counts compilations, without a compiler behind them; a graph that would break is an error."""
    counter, compile_it = CompileCounterWithBackend("eager"), torch.compile

    def compiled(forward: Callable[..., Any], **options: Any) -> Any:
        return compile_it(forward, backend=counter, fullgraph=True, **options)

    monkeypatch.setattr(torch, "compile", compiled)
    torch._dynamo.reset()
    yield counter
    torch._dynamo.reset()


# plain MLPs of their own and inside the block, gated, packed, and blocks of two kinds
@pytest.mark.parametrize(
    "name",
    ["gpt2", "llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bert", "phi3", "gemma3"))],
)
def test_blocks_are_whole_graphs_and_give_the_same(name: str, graphs: CompileCounterWithBackend) -> None:
    loaded, compiled, plain = adapt(tiny(name), name=name), Keeper(), Keeper()
    # parts for a processor's cache, which a block does not take
    with Runner(loaded, mlps(loaded), compiled.take, compiled=True, chunk_tokens=16) as runner:
        for batch in BATCHES:
            runner.run(batch)
    assert graphs.frame_count > 0
    with Runner(loaded, mlps(loaded), plain.take, matmul="torch") as runner:
        for batch in BATCHES:
            runner.run(batch)
    assert compiled.calls == plain.calls
    for layer in plain.kept:
        torch.testing.assert_close(compiled.layer(layer), plain.layer(layer), rtol=1e-5, atol=1e-5)


def test_blocks_that_are_alike_share_their_graph(
    graphs: CompileCounterWithBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, settings = tiny_models.CONFIGURATIONS["llama"]
    deep = {**settings, "num_hidden_layers": 11}
    monkeypatch.setitem(tiny_models.CONFIGURATIONS, "llama", (kind, deep))
    loaded, keeper = adapt(fresh("llama"), name="llama"), Keeper()
    with Runner(loaded, mlps(loaded), keeper.take, compiled=True) as runner:
        for batch in BATCHES[:3]:
            runner.run(batch)
    assert len(keeper.calls) == 33
    assert graphs.frame_count == 1


def test_blocks_without_a_chosen_layer_are_compiled_too(graphs: CompileCounterWithBackend) -> None:
    loaded, keeper = adapt(tiny("gpt2"), name="gpt2"), Keeper()
    with Runner(loaded, mlps(loaded, [2]), keeper.take, compiled=True) as runner:
        runner.run(BATCHES[0])
    assert keeper.calls == ["made 2"]
    assert graphs.frame_count == 1


@pytest.mark.slow
def test_the_compiler_itself_gives_the_same() -> None:
    loaded, compiled, plain = adapt(tiny("gpt2"), name="gpt2"), Keeper(), Keeper()
    torch._dynamo.reset()
    Runner(loaded, mlps(loaded), compiled.take, compiled=True).run(BATCHES[0])
    Runner(loaded, mlps(loaded), plain.take, matmul="torch").run(BATCHES[0])
    for layer in plain.kept:
        torch.testing.assert_close(compiled.layer(layer), plain.layer(layer), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_the_model_is_left_as_it_was(name: str, graphs: CompileCounterWithBackend) -> None:
    model = fresh(name)
    before = dict(model.named_modules())

    class Failing(Keeper):
        def _keep(self, *args: Any) -> None:
            raise KeyboardInterrupt

    loaded = adapt(model, name=name)
    with (
        pytest.raises(KeyboardInterrupt),
        Runner(loaded, mlps(loaded), Failing().take, compiled=True) as runner,
    ):
        runner.run(BATCHES[0])
    after: dict[str, nn.Module] = dict(model.named_modules())
    assert list(before) == list(after)
    assert all(before[path] is module for path, module in after.items())
    assert not any("forward" in module.__dict__ for module in after.values())


def test_a_build_compiles_its_blocks(graphs: CompileCounterWithBackend, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("for line in lines:\n    print(line)\n" * 200)
    asked: dict[str, Any] = {
        "model": str(minilm()), "corpus": (str(tmp_path / "corpus.txt"),), "layers": "0-1", "threads": 1,
        "context": 32,
    }  # fmt: skip
    found = []
    for compiled in (True, False):
        config = BuildConfig(**asked, output=tmp_path / f"{compiled}.index", compile=compiled)
        with indexer.open_index(build(config)) as index:
            units = index.sql("SELECT count, maximum, mean FROM units ORDER BY layer, unit")
            found.append((index.info()["totals"]["counted_tokens"], units))
    assert graphs.frame_count > 0
    (tokens, units), (expected_tokens, expected) = found
    assert tokens == expected_tokens > 1024
    for name in ("count", "maximum", "mean"):
        np.testing.assert_allclose(units[name].to_numpy(), expected[name].to_numpy(), rtol=1e-3, atol=1e-5)


def test_what_cannot_be_compiled_is_told() -> None:
    loaded = adapt(tiny("gpt2"), name="gpt2")
    with pytest.raises(IndexerError, match=r"--compile: mlp\.0 is read by a hook"):
        Runner(loaded, mlps(loaded, hooks=True), Keeper().take, compiled=True)
    asked = {"model": "m", "corpus": ("c",), "output": "o", "compile": True}
    for other in ({"hooks": True}, {"numerics": "reproducible"}):
        with pytest.raises(IndexerError, match="--compile"):
            build_config({**asked, **other}, None)
