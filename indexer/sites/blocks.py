"""The blocks of a model: lists of modules that its forward pass runs one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from indexer.errors import IndexerError
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
    """Every block of some lists, by its path; one that is there several times by the first."""
    paths: dict[nn.Module, str] = {}
    for name, blocks in lists.items():
        for number, block in enumerate(blocks):
            paths.setdefault(block, f"{name}.{number}")
    return {path: block for block, path in paths.items()}


def ran_once(lists: Mapping[str, nn.ModuleList], runs: Mapping[str, int]) -> dict[str, nn.ModuleList]:
    """The lists whose blocks all ran once in a forward pass, the one with most weights first.

    runs: how often each block ran, by its path. The first is the body of the model; others may hold adapters,
    say, or auxiliary layers.
    """
    return _heaviest_first(
        {
            name: blocks
            for name, blocks in lists.items()
            if all(runs[path] == 1 for path in blocks_of({name: blocks}))
        }
    )


def blocks_with(
    loaded: LoadedModel, runs: Mapping[str, int], has: Callable[[str], object], wanted: str
) -> dict[str, nn.Module]:
    """The blocks, by path, of the one list that ran once and of which some block has what is wanted.

    runs: see ran_once. has: whether a block has it, by its path. wanted: what that is, to end a message with.
    Raises IndexerError where no list is such, and where several are.
    """
    found = {
        name: blocks
        for name, blocks in ran_once(block_lists(loaded), runs).items()
        if any(has(path) for path in blocks_of({name: blocks}))
    }
    if len(found) != 1:
        which = f"more than one list of blocks ({listed(found)})" if found else "no block that runs once"
        raise IndexerError(f"model {loaded.provenance['architecture']}: {which} has {wanted}")
    return blocks_of(found)


def ran(lists: Mapping[str, nn.ModuleList], runs: Mapping[str, int]) -> dict[str, nn.ModuleList]:
    """The lists of which some block ran, as often as it may be, the one with most weights first."""
    return _heaviest_first(
        {
            name: blocks
            for name, blocks in lists.items()
            if any(runs[path] for path in blocks_of({name: blocks}))
        }
    )


def _heaviest_first(lists: dict[str, nn.ModuleList]) -> dict[str, nn.ModuleList]:
    weights = {name: sum(weight.numel() for weight in blocks.parameters()) for name, blocks in lists.items()}
    return dict(sorted(lists.items(), key=lambda item: -weights[item[0]]))


def listed(lists: Mapping[str, nn.ModuleList]) -> str:
    """Paths and lengths, for a message."""
    return ", ".join(f"{name} ({len(blocks)})" for name, blocks in lists.items()) or "none"
