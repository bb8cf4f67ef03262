"""What samples cost on a GPU: the fused statistics of one layer with and without them, in turns.

Run as `python -m benchmarks.gpu_bands`; prints one line of JSON. Both sides see the same batches, each once,
and have seen others before, so that as many sequences enter as in the midst of a build.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from statistics import median

import numpy as np
import torch
from indexer_kernels import Keep, Sequences, Statistics
from indexer_kernels.plan import Plan

# batches of a turn, all queued before the first one starts
CALLS = 4
SIDES = {"plain": Keep(), "sampled": Keep(samples=2)}


def batches(tokens: int, length: int, device: torch.device) -> Iterator[Sequences]:
    """Full sequences of documents of their own, whose first token does not count, on the device already."""
    edges = np.arange(0, tokens + 1, length)
    counted = np.ones(tokens, np.bool_)
    counted[edges[:-1]] = False
    number, ids = np.arange(len(edges) - 1), np.zeros(tokens, np.int32)
    for batch in range(1_000_000):
        documents = number + batch * len(number)
        sequences = Sequences.from_offsets(edges, documents, np.zeros_like(number), ids, counted)
        Plan.of(sequences, device)
        yield sequences


def measure(tokens: int, units: int, length: int, settled: int, rounds: int) -> dict[str, float]:
    """Seconds of a batch of bfloat16 SwiGLU, medians; settled: batches that the states have seen."""
    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(0)
    gates = [
        torch.empty(tokens, units, dtype=torch.bfloat16, device=device).normal_(
            -0.6, 1.2, generator=generator
        )
        for _ in range(CALLS)
    ]
    up, out = torch.randn_like(gates[0]), torch.empty_like(gates[0])
    states = {
        name: Statistics.empty(units, keep, layer="mlp.0", kernels="triton") for name, keep in SIDES.items()
    }
    source = batches(tokens, length, device)

    def shift() -> int:
        # units in another order: every unit sees new sequences
        return 64 * int(np.random.default_rng().integers(units // 64))

    def turn(statistics: Statistics, several: list[Sequences], rolled: list[torch.Tensor]) -> float:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        # long enough for the host to queue all calls
        torch.cuda._sleep(20_000_000)
        before.record()
        for sequences, gate in zip(several, rolled, strict=True):
            statistics.activate("silu", gate, up, sequences, out)
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1e3 / CALLS

    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for number in range(settled // CALLS + rounds):
        several = [next(source) for _ in range(CALLS)]
        rolled = [gate.roll((shift(), int(shift() // 64)), (1, 0)) for gate in gates]
        for name in sorted(SIDES, reverse=bool(number % 2)):
            taken = turn(states[name], several, rolled)
            if number >= settled // CALLS:
                seconds[name].append(taken)
        del rolled
    plain, sampled = median(seconds["plain"]), median(seconds["sampled"])
    pairs = [one / other for one, other in zip(seconds["sampled"], seconds["plain"], strict=True)]
    return {
        "tokens": tokens, "units": units, "sequence_tokens": length, "settled_batches": settled,
        "rounds": rounds, "plain_seconds": plain, "sampled_seconds": sampled,
        "sampled_per_plain": median(pairs), "sampled_per_plain_min": min(pairs),
        "sampled_per_plain_max": max(pairs),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--units", type=int, default=14_336)
    parser.add_argument("--settled", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    begin = time.perf_counter()
    rows = [
        measure(options.tokens, options.units, length, options.settled, options.rounds)
        for length in (256, 1024, 64)
    ]
    line = {"device": torch.cuda.get_device_name(), "rows": rows, "seconds": time.perf_counter() - begin}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
