"""One part of what is measured on a GPU; benchmarks/on_gpu.sh runs all of them, a process each.

Figures are plain numbers, names with their unit; NAME_failure holds the traceback of something that failed.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_models import SHAPES as MODELS
from benchmarks.options import option, settings_of
from benchmarks.report import Report, Table
from indexer.errors import IndexerError

Figures = dict[str, Any]
PARTS = ("machine", "kernels", "features", *MODELS)
ROUNDS = 15


@dataclass(frozen=True)
class Options:
    part: str = option("machine", "what to measure", choices=PARTS)
    file: str | None = option(None, "a file that holds the figures so far after every piece of work")
    dry: bool = option(False, "on the CPU, kernels in Triton's interpreter: figures mean nothing", quick=True)


def run(options: Options) -> Report:
    """Measure one part. Raises IndexerError without a GPU, but in a dry run."""
    if options.dry:
        # read when triton is imported, which nothing here has done yet
        os.environ["TRITON_INTERPRET"] = "1"
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        raise IndexerError("gpu: torch finds no GPU; --dry shows on the CPU that it works")
    device = torch.device("cpu" if options.dry else "cuda")
    figures = _measured(options.part, device, options.dry, _saver(options.file))
    checks = figures.pop("checks", [])
    settings = settings_of(options, leave_out=("file",)) | {"device": str(device)}
    title = f"{'DRY RUN: ' if options.dry else ''}{options.part}"
    return Report(settings, checks, figures, [Table(title, ("figure", "value"), _rows(figures))])


def _measured(part: str, device: torch.device, dry: bool, save: Callable[[Figures], None]) -> Figures:
    if part == "machine":
        figures = _machine(device)
    elif part == "kernels":
        figures = _kernels(device, dry, save)
    elif part == "features":
        from benchmarks import gpu_features

        figures = gpu_features.measure(device, dry=dry, save=save)
    else:
        from benchmarks import gpu_pipeline

        figures = gpu_pipeline.measure(part, device, dry=dry, save=save)
    save(figures)
    return figures


def _machine(device: torch.device) -> Figures:
    """What the figures are measured on."""
    from benchmarks.record import record

    figures: Figures = {"triton": version("triton"), "cuda": torch.version.cuda, **record()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        figures |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "driver": _driver(),
        }
    return figures


def _driver() -> str | None:
    """The version of NVIDIA's driver; None where its program does not say."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def _kernels(device: torch.device, dry: bool, save: Callable[[Figures], None]) -> Figures:
    """Figures of every shape, which stands before their names."""
    from benchmarks import gpu_kernels

    figures: Figures = {}
    for tokens, units in ((24, 2),) if dry else gpu_kernels.SHAPES:
        rounds = 1 if dry else ROUNDS
        measured = gpu_kernels.measure(device, tokens=tokens, units=units, rounds=rounds, dry=dry)
        figures[f"{tokens} x {units}"] = measured
        save(figures)
    return figures


def _saver(file: str | None) -> Callable[[Figures], None]:
    """Replaces the file as a whole: whoever reads it never finds half of it."""

    def save(figures: Figures) -> None:
        if file is not None:
            Path(file + ".new").write_text(json.dumps(figures))
            os.replace(file + ".new", file)

    return save


def _rows(figures: Figures, before: str = "") -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, value in figures.items():
        if isinstance(value, dict):
            rows += _rows(value, f"{before}{name}: ")
        elif isinstance(value, float):
            rows.append((before + name, f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"))
        else:
            rows.append((before + name, str(value)))
    return rows
