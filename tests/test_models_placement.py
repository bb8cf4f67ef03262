"""Where a model goes, told by figures alone; and one that is spread is run and indexed like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from indexer.building.run import build
from indexer.config.build import BuildConfig
from indexer.errors import IndexerError
from indexer.models import LoadedModel, adapt, load, loading, placement
from indexer.models.placement import Placement, device_type, weight_bytes
from indexer.models.probe import Workspace
from indexer.models.weights import read_headers, weight_files
from tests.test_models_runner import run
from tests.test_pipeline import tables
from tests.tiny_batches import mlps, tiny_batch
from tests.tiny_models import FUSED, HOOKED, LAYERS, fresh, saved, words

pytestmark = pytest.mark.usefixtures("one_thread")
GB = 10**9
CPU = torch.device("cpu")
needs_accelerate = pytest.mark.skipif(
    placement.find_spec("accelerate") is None, reason="the extra multi-gpu is not installed"
)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Free bytes of each GPU of a machine; a test adds them."""
    free: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(free))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(placement, "free_memory", lambda device: free[device.index])
    monkeypatch.setattr(placement, "find_spec", lambda name: object())
    return free


def placed(device: str, weights: int = 10 * GB) -> Placement:
    return placement.placement("m", device, weights, torch.bfloat16)


def on(number: int) -> Placement:
    return Placement(torch.device("cuda", number))


def test_names_of_devices(gpus: list[int]) -> None:
    assert (device_type("auto"), device_type("cpu")) == ("cpu", "cpu")
    for name in ("cuda", "cuda:0", "spread"):
        with pytest.raises(IndexerError, match=f"device {name}: this machine has 0 GPUs for torch; take"):
            device_type(name)
    for name in ("tpu", "cuda:", "cuda:x", "cuda:-1", "cuda1", "Spread", ""):
        with pytest.raises(
            IndexerError, match=f"device {name}: choose among auto, cpu, cuda, cuda:N, spread"
        ):
            device_type(name)
    gpus[:] = [GB, GB]
    assert {device_type(name) for name in ("auto", "cuda", "cuda:1", "spread")} == {"cuda"}
    assert device_type("cpu") == "cpu"
    with pytest.raises(IndexerError, match="device cuda:2: this machine has 2 GPUs for torch"):
        device_type("cuda:2")


def test_one_gpu_where_one_does(gpus: list[int]) -> None:
    assert placed("auto") == placed("cpu") == Placement(CPU)
    # a tenth more than the weights
    gpus[:] = [11 * GB - 1, 11 * GB, 50 * GB]
    assert placed("auto") == placed("cuda:1") == on(1)
    assert placed("cuda:2") == on(2)
    message = (
        "model m: its weights take 10 GB in bfloat16, and batches a tenth more at least, but cuda:0 has "
        "11 GB free; take --device spread, or --device cpu"
    )
    with pytest.raises(IndexerError, match=message):
        placed("cuda")
    gpus[:] = [GB]
    for name in ("cuda", "cuda:0"):
        with pytest.raises(IndexerError, match=r"but cuda:0 has 1 GB free; take --device cpu$"):
            placed(name)


def test_all_gpus_where_none_does(gpus: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus[:] = [5_500_000_000, 5_500_000_000]
    half = {0: 5 * GB, 1: 5 * GB}
    assert placed("auto") == placed("spread") == Placement(torch.device("cuda", 0), half)
    # spread although one would do, where that is asked for
    assert placed("spread", GB) == Placement(torch.device("cuda", 0), half)
    assert placed("auto", GB) == on(0)
    gpus[1] -= 1
    message = (
        "model m: its weights take 10 GB in bfloat16, and batches a tenth more at least, but the 2 GPUs "
        "in sight have 11 GB free; take --device cpu, or a machine with more"
    )
    for name in ("auto", "spread"):
        with pytest.raises(IndexerError, match=message):
            placed(name)
    gpus[:] = [50 * GB]
    assert placed("spread") == on(0)
    gpus[:] = [50 * GB, 50 * GB]
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    with pytest.raises(IndexerError, match="accelerate; install it with: pip install accelerate"):
        placed("spread")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_are_known_from_their_files(tmp_path: Path, dtype: torch.dtype) -> None:
    saved(tmp_path)
    model = load(str(tmp_path), dtype=str(dtype).removeprefix("torch."), device="cpu").model
    wanted = sum(weight.nbytes for weight in model.parameters())
    assert weight_bytes(read_headers("m", weight_files("m", tmp_path)), dtype) == wanted


def test_scratch_memory_is_where_the_layer_is() -> None:
    workspace = Workspace(nn.Identity())
    here = workspace.take(0, 4, 8, torch.empty(0))
    there = workspace.take(0, 4, 8, torch.empty(0, device="meta"))
    assert (here.device.type, there.device.type) == ("cpu", "meta")
    assert workspace.take(0, 2, 8, torch.empty(0)).data_ptr() == here.data_ptr()


def spread(model: nn.Module) -> LoadedModel:
    """A model with the hooks that move tensors from device to device, block by block, to the CPU each."""
    from accelerate import dispatch_model

    places: dict[str, Any] = {}
    for name, child in model.named_children():
        blocks = (
            [f"{name}.{number}" for number in range(len(child))] if isinstance(child, nn.ModuleList) else []
        )
        places |= dict.fromkeys(blocks or [name], "cpu")
    return adapt(dispatch_model(model, device_map=places, force_hooks=True))


@needs_accelerate
@pytest.mark.parametrize("name", FUSED + HOOKED)
def test_a_spread_model_gives_the_same_activations(name: str) -> None:
    whole, parted = adapt(fresh(name)), spread(fresh(name))
    assert all(hasattr(probe.module, "_hf_hook") for probe in mlps(parted))
    assert [probe.fused for probe in mlps(parted)] == [probe.fused for probe in mlps(whole)]
    batch = tiny_batch(40, 7, 23)
    for hooks in (False, True):
        one, other = run(whole, batch, hooks), run(parted, batch, hooks)
        assert all(torch.equal(one.layer(layer), other.layer(layer)) for layer in range(LAYERS))


@needs_accelerate
def test_a_spread_model_gives_the_same_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved(tmp_path / "model")
    (tmp_path / "a.txt").write_text(" ".join(words()[4:] * 20))

    def indexed(output: str) -> Any:
        config = BuildConfig(
            model=str(model),
            corpus=(str(tmp_path / "a.txt"),),
            output=tmp_path / output,
            context=32,
            threads=1,
        )
        return tables(build(config))

    whole = indexed("whole.index")
    asked: list[tuple[Any, ...]] = []

    def placed(*arguments: Any) -> Placement:
        asked.append(arguments)
        return Placement(CPU, {"cpu": GB})  # type: ignore[dict-item]

    # through transformers and accelerate, whose map is for one device here
    monkeypatch.setattr(loading, "placement", placed)
    monkeypatch.setattr("indexer.building.plan.load", lambda *a, **k: _parted(load(*a, **k)))
    assert indexed("parted.index") == whole
    weights = sum(weight.nbytes for weight in load(str(model), device="cpu").model.parameters())
    assert asked[0] == (str(model), "auto", weights, torch.float32)


def _parted(loaded: LoadedModel) -> LoadedModel:
    parted = spread(loaded.model)
    return replace(loaded, model=parted.model)


@needs_accelerate
def test_layers_that_fit_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = saved(tmp_path / "model")
    monkeypatch.setattr(loading, "placement", lambda *_: Placement(CPU, {"cpu": 60_000}))  # type: ignore[dict-item]
    message = "cut into whole layers its weights do not fit the 1 GPUs, norm being the first without room"
    with pytest.raises(IndexerError, match=message):
        load(str(model), device="cpu")
    # accelerate says nothing beside it
    assert not caplog.records
