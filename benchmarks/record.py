"""What a figure was measured on: machine, versions, commit, kernels."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from indexer.version import versions

COMMIT = "NEURON_INDEXER_COMMIT"
PACKAGES = ("torch", "transformers", "numpy", "pyarrow", "duckdb")


def record() -> dict[str, Any]:
    """Plain values; called after measuring, since it imports the kernels and torch with them."""
    return {
        "machine": _machine(),
        "versions": {"python": platform.python_version(), **versions(PACKAGES)},
        "commit": _commit(),
        "kernels": _kernels(),
    }


def _machine() -> dict[str, Any]:
    import psutil

    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.system(),
    }


def _processor() -> str:
    """The processor's own name; where the system does not give one, what it calls its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _commit() -> dict[str, Any]:
    """The commit of the source tree and whether it has changes of its own; None where it is no git tree.

    A tree without its history has it from the environment, as gpu_steps.py has set it.
    """
    if COMMIT in os.environ:
        return {"id": os.environ[COMMIT], "dirty": None}
    try:
        return {"id": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"id": None, "dirty": None}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _kernels() -> dict[str, Any]:
    from indexer_kernels._cpp import instruction_sets
    from indexer_kernels.dispatch import instruction_set

    return {"instruction_set": instruction_set(), "available": instruction_sets()}
