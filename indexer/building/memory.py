"""What a build on the CPU takes of the main memory, known before it starts.

What is there is looked at when the model is loaded; states are counted exactly. What batches take beside is
measured, by running one of full size through the first layers twice: with the second the memory that freed
blocks leave between others is there, too, and it does not grow from then on. Reading ahead and writing took
31 to 89 MB more in four builds of MiniLM, in float32 and bfloat16, over 9 and 90 thousand tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from indexer.building.allocator import freed_memory_kept
from indexer.building.plan import Plan
from indexer.config.share import free_main_memory
from indexer.errors import IndexerError
from indexer.models.alone import Plain, first_layers
from indexer.models.forward import embedding_rows
from indexer.models.peak import FullBatch
from indexer.talk import in_bytes
from indexer.tokens.batch import FIXED_TOKENS

LOOK_SECONDS = 0.002
# what reading ahead and writing take, about
BESIDE_BYTES = 48 << 20


@dataclass(frozen=True)
class MainMemory:
    """Bytes of the main memory: of what was there before the states, of the states, and of batches.

    tokens: of a batch. free: what all of it has to fit.
    """

    loaded: int
    state: int
    batches: int
    tokens: int
    free: int

    @property
    def whole(self) -> int:
        """What a build takes at its peak."""
        return self.loaded + self.state + self.batches + BESIDE_BYTES

    def line(self) -> str:
        """The plan as one line for people."""
        return (
            f"memory: {in_bytes(self.loaded)} model and program + {in_bytes(self.batches)} for batches of "
            f"{self.tokens:,} tokens + {in_bytes(self.state)} statistics + {in_bytes(BESIDE_BYTES)} for "
            f"reading and writing = {in_bytes(self.whole)} of {in_bytes(self.free)} free"
        )


def resident_bytes() -> int:
    """The memory that this process has by now."""
    return int(psutil.Process().memory_info().rss)


def planned_memory(plan: Plan, loaded: int) -> MainMemory:
    """What a build will take. loaded: what was there before its states were made, see resident_bytes.

    Raises IndexerError where batches do not fit beside what there is.
    Cost: two batches of full size through the first layers.
    """
    before = resident_bytes()
    tokens = {"single": 1, "fixed": FIXED_TOKENS}.get(plan.shapes, plan.memory.batch_tokens)
    width = plan.config.sequence_tokens
    batch = FullBatch.of(max(1, tokens // width), width, embedding_rows(plan.loaded.model))
    some = first_layers(plan.probes, plan.loaded)
    runner = plan.runner(Plain(plan.kernels).take, some)
    with freed_memory_kept(plan.largest_block), _resident_peak() as peak, runner:
        for _ in range(2):
            runner.run(batch)
    batches = max(0, peak[0] - before)
    if batches > free_main_memory():
        raise IndexerError(
            f"batches of {batch.token_ids.size:,} tokens take {in_bytes(batches)}, and "
            f"{in_bytes(free_main_memory())} of memory are free; use a smaller --batch-tokens or --context"
        )
    free = loaded + plan.memory.free
    return MainMemory(loaded, plan.memory.host_state, batches, batch.token_ids.size, free)


@contextmanager
def _resident_peak() -> Iterator[list[int]]:
    """Notes the most memory that this process has within the block, as it is seen every few milliseconds."""
    process, done, peak = psutil.Process(), threading.Event(), [0]

    def look() -> None:
        while not done.wait(LOOK_SECONDS):
            peak[0] = max(peak[0], process.memory_info().rss)

    watching = threading.Thread(target=look, name="memory", daemon=True)
    watching.start()
    try:
        yield peak
    finally:
        done.set()
        watching.join()
        peak[0] = max(peak[0], process.memory_info().rss)
