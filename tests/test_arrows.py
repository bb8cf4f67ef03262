"""Imports point one way; see CONTRIBUTING.md."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "kernels" / "indexer_kernels"
# what reading an index consists of
READING = [
    "indexer",
    "indexer_kernels",
    "indexer.names",
    *(
        f"indexer.{folder.replace('/', '.')}.{path.stem}".removesuffix(".__init__")
        for folder in ("commands", "display", "index", "index/codecs")
        for path in sorted((ROOT / "indexer" / folder).glob("*.py"))
    ),
]


def imports(path: Path) -> set[str]:
    """Names of the modules that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def named(modules: set[str], *packages: str) -> set[str]:
    return {module for module in modules if module.split(".")[0] in packages}


@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.py")), ids=lambda path: path.name)
def test_kernels_know_only_arrays(path: Path) -> None:
    assert not named(imports(path), "indexer", "transformers", "pyarrow", "duckdb", "tests", "benchmarks")
    if not path.name.endswith("_triton.py"):
        assert not named(imports(path), "triton")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "indexer").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_nothing_imports_tests_or_benchmarks(path: Path) -> None:
    assert not named(imports(path), "tests", "benchmarks", "triton")


def test_headers_know_no_python() -> None:
    for path in (ROOT / "csrc").iterdir():
        assert ("pybind11" in path.read_text()) == (path.name == "bindings.cpp"), path.name


def test_reading_needs_neither_torch_nor_compiled_kernels() -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'indexer_kernels._cpp', 'triton', 'datasets'):\n"
        "    sys.modules[name] = None\n" + "".join(f"import {module}\n" for module in READING)
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=120)


def test_every_package_is_installed() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "indexer").rglob("__init__.py")]
    there = {".".join(folder.parts) for folder in folders}
    assert set(told) == there | {"indexer_kernels"}


def test_no_module_leads_back_to_itself() -> None:
    """Whatever a module imports, anywhere in it and for types alone, too."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "indexer").rglob("*.py")
    }
    graph = {name: {*_modules(path, paths)} - {name} for name, path in paths.items()}
    sorter = graphlib.TopologicalSorter(graph)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_rooms_import_those_above_them() -> None:
    """As the table of docs/design.md has them."""
    table = (ROOT / "docs" / "design.md").read_text().split("## Rooms")[1].split("\n\n")[1]
    rooms = [re.findall(r"`indexer/(\w+)/`", line.split("|")[1]) for line in table.splitlines()[2:]]
    rank = {room: number for number, row in enumerate(rooms) for room in row}
    there = {path.parent.name for path in (ROOT / "indexer").glob("*/__init__.py")}
    assert set(rank) == there
    for room in there:
        for path in (ROOT / "indexer" / room).rglob("*.py"):
            for module in named(imports(path), "indexer"):
                other = module.split(".")[1] if "." in module else ""
                assert rank.get(other, 0) <= rank[room], f"{path.name} of {room} imports {module}"


def _modules(path: Path, known: Collection[str]) -> Iterator[str]:
    """Modules of ours that a file imports, or imports names from."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            inside = [f"{node.module}.{name.name}" for name in node.names]
            yield from (name for name in inside if name in known)
            if any(name not in known for name in inside):
                yield str(node.module)
