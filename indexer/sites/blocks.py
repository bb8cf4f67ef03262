"""The blocks of a model: lists of modules that its forward pass runs one after the other."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from indexer.models import LoadedModel


def block_lists(loaded: LoadedModel) -> dict[str, nn.ModuleList]:
    """The lists of blocks, which have parts, without lists within blocks; by path."""
    lists: dict[str, nn.ModuleList] = {}
    for name, module in loaded.modules():
        if (
            isinstance(module, nn.ModuleList)
            and len(module)
            and not isinstance(module[0], nn.ModuleList)
            and any(True for _ in module[0].children())
            and not any(name.startswith(f"{o}.") for o in lists)
        ):
            lists[name] = module
    return lists


def blocks_of(lists: Mapping[str, nn.ModuleList]) -> dict[str, nn.Module]:
    """Every block of some lists, by its path."""
    return {f"{name}.{i}": block for name, blocks in lists.items() for i, block in enumerate(blocks)}


def ran_once(lists: Mapping[str, nn.ModuleList], runs: Mapping[str, int]) -> dict[str, nn.ModuleList]:
    """The lists whose blocks all ran once in a forward pass, the one with most weights first.

    runs: how often each block ran, by its path. The first is the body of the model; others may hold adapters,
    say, or auxiliary layers.
    """
    ran = [name for name in lists if all(runs[path] == 1 for path in blocks_of({name: lists[name]}))]
    weights = {name: sum(weight.numel() for weight in lists[name].parameters()) for name in ran}
    return {name: lists[name] for name in sorted(ran, key=lambda name: -weights[name])}


def listed(lists: Mapping[str, nn.ModuleList]) -> str:
    """Paths and lengths, for a message."""
    return ", ".join(f"{name} ({len(blocks)})" for name, blocks in lists.items()) or "none"
