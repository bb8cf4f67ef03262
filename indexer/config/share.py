"""What of a machine's memory is this build's own, where other builds share the machine.

Who starts several says so in their environment, for each of them sees all that is free when it looks.
"""

from __future__ import annotations

import os

import psutil

# bytes of main memory that this process may take in all
MEMORY = "NEURON_INDEXER_MEMORY"
# how many builds share the GPU that this process sees
GPU_BUILDS = "NEURON_INDEXER_GPU_BUILDS"


def is_shared() -> bool:
    """Whether other builds take their parts of this machine's main memory."""
    return MEMORY in os.environ


def free_main_memory() -> int:
    """Bytes of main memory that this process may still take: of what is free its own part."""
    free = psutil.virtual_memory().available
    if not is_shared():
        return free
    return max(0, min(free, int(os.environ[MEMORY]) - psutil.Process().memory_full_info().uss))


def part_of_gpu(total: int) -> int:
    """Bytes of a GPU's memory that this process may take in all. total: what the GPU has."""
    return total // int(os.environ.get(GPU_BUILDS, "1"))
