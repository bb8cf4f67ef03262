"""The README's commands and Python run as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from indexer.commands import app
from tests.real_model import minilm, standard_library

README = (Path(__file__).parents[1] / "README.md").read_text()
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


def test_commands_run_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    commands = [line for block in RUN.findall(README) for line in block.splitlines()]
    assert len(commands) >= 8
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "neuron-indexer"
        result = CliRunner().invoke(app, arguments, prog_name=program)
        assert result.exit_code == 0, (command, result.output)
        assert result.output, command
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
