"""The site `resid`: channels of the residual stream after every block, which are what the block returns."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from indexer.errors import IndexerError
from indexer.models import LoadedModel
from indexer.models.forward import call_model
from indexer.names import RESID, Key
from indexer.sites.asked import Asked
from indexer.sites.blocks import block_lists, blocks_of, listed, ran_once
from indexer.sites.hook import Hook

_LEAVE = "leave resid out of --sites"


def find(loaded: LoadedModel, asked: Asked) -> list[Hook]:
    """The one tensor that every block of a model returns.

    Raises IndexerError where not exactly one list of blocks returns a row for every token, each block once,
    or where a block returns several such tensors.
    Cost: a forward pass over 16 tokens.
    """
    lists = block_lists(loaded)
    returned: dict[str, list[list[Tensor]]] = {path: [] for path in blocks_of(lists)}
    with ExitStack() as stack:
        for path, block in blocks_of(lists).items():
            stack.enter_context(block.register_forward_hook(_keeping(returned[path])))
        call_model(loaded.model, loaded.sample.token_ids)

    model = f"model {loaded.provenance['architecture']}"
    ran = ran_once(lists, {path: len(outputs) for path, outputs in returned.items()})
    streams = {
        path: [
            tensor for tensor in outputs[0] if tensor.is_floating_point() and tensor.shape[:-1] == loaded.rows
        ]
        for path, outputs in returned.items()
        if outputs
    }
    holding = {name: blocks for name, blocks in ran.items() if streams[f"{name}.0"]}
    if len(holding) != 1:
        which = f"more than one list of blocks ({listed(holding)})" if holding else "no list of blocks"
        raise IndexerError(
            f"{model}: {which} returns a row for every token, each block once, which would be the residual "
            f"stream; {_LEAVE}"
        )
    probes = []
    for number, (path, block) in enumerate(blocks_of(holding).items()):
        if len(streams[path]) != 1:
            raise IndexerError(
                f"{model}: {path} ({type(block).__name__}) returns {len(streams[path])} tensors with a row "
                f"for every token, where one would be the residual stream; {_LEAVE}"
            )
        key, units = Key(RESID, number), streams[path][0].shape[-1]
        probes.append(Hook(key=key, units=units, keep=asked.keep, place=path, module=block, returned=True))
    return probes


def _keeping(returned: list[list[Tensor]]) -> Any:
    """A hook that notes the tensors that a module returns."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        values = output if isinstance(output, tuple | list) else (output,)
        returned.append([value for value in values if isinstance(value, Tensor)])

    return hook
