"""The commands and Python of the README, of docs/panel.md and of docs/pages.md run as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from indexer.commands import app
from tests.real_model import minilm, standard_library

ROOT = Path(__file__).parents[1]
README, PANEL, PAGES = (
    (ROOT / page).read_text() for page in ("README.md", "docs/panel.md", "docs/pages.md")
)
RUN = re.compile(r"<!-- run -->\n```\n(.*?)```", re.DOTALL)
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader would stand: a model, some texts."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "model").symlink_to(minilm())
    (folder / "texts").mkdir()
    for path in standard_library("argparse.py", "ast.py"):
        (folder / "texts" / Path(path).name).write_text(Path(path).read_text()[:20000])
    return folder


def run_commands(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each command of a page printed."""
    monkeypatch.chdir(folder)
    printed = []
    for command in (line for block in RUN.findall(page) for line in block.splitlines()):
        program, *arguments = shlex.split(command)
        assert program == "neuron-indexer"
        result = CliRunner().invoke(app, arguments, prog_name=program)
        assert result.exit_code == 0, (command, result.output)
        assert result.output, command
        printed.append(result.stdout)
    return printed


def test_commands_run_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(run_commands(README, folder, monkeypatch)) >= 8
    assert (folder / "neuron.png").stat().st_size > 5000


def test_python_runs_after_the_commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if not (folder / "my.index").exists():
        pytest.skip("the commands did not make the index")
    blocks = PYTHON.findall(README)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    # the characters that the example leads to are those of its token
    found = names["text"][names["first"] : names["last"]].lower()
    assert found == names["example"]["token"].removeprefix("##") != ""
    assert (folder / "other.index" / "manifest.json").exists()


def test_pages_are_written_and_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if not (folder / "my.index").exists():
        pytest.skip("the README's commands did not make the index")
    assert len(run_commands(PAGES, folder, monkeypatch)) == 1
    assert (folder / "pages" / "index.html").exists()
    [block] = PYTHON.findall(PAGES)
    exec(compile(block, "pages.md", "exec"), {})
    # what is served is not run here: its options are those that there are
    for page in (README, PAGES):
        for line in re.findall(r"^neuron-indexer serve (.*)$", page, re.MULTILINE):
            command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
            command.make_context("serve", shlex.split(line))


def test_the_panel_answers_alike_in_sql_and_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if not (folder / "my.index").exists():
        pytest.skip("the README's commands did not make the index")
    names: dict[str, Any] = {}
    for block in PYTHON.findall(PANEL):
        exec(compile(block, "panel.md", "exec"), names)
    activations, unit, correlation = names["activations"], names["unit"], names["correlation"]
    assert (activations[:, 1000] == unit).all()
    assert len(names["tokens"]) == len(unit)
    exact = np.corrcoef(activations.astype(np.float64), rowvar=False)[1000]
    np.testing.assert_allclose(correlation, exact, atol=1e-4)
    # its own strongest token may lie outside the panel
    assert names["share"] == (unit <= names["value"]).sum() / len(unit) > 0.9
    two, nearest, share, strongest = run_commands(PANEL, folder, monkeypatch)
    assert f"{exact[7]:.4f}"[:5] in two
    found = re.findall(r"mlp\.3\.(\d+)", nearest)
    assert found == ["1000", *map(str, names["nearest"])]
    assert f"{(unit <= 0.5).mean():.4f}"[:5] in share
    assert f"{unit.max():.4f}"[:5] in strongest
