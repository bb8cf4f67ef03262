"""The program as a process: quick to start, quiet when its reader leaves, honest about how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import indexer

ROOT = Path(indexer.__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "COLUMNS": "100"}
HEAVY = (
    *("torch", "transformers", "datasets", "duckdb", "pyarrow", "numpy", "matplotlib", "pydantic"),
    "indexer_kernels",
)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=60
    )


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys, indexer.commands\n"
        "try: indexer.commands.app(['--help'], prog_name='neuron-indexer')\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert "Usage: neuron-indexer" in done.stdout


def test_the_package_needs_nothing_heavy() -> None:
    done = python("-c", f"import indexer, sys; print([name for name in {HEAVY} if name in sys.modules])")
    assert done.stdout == "[]\n"


def test_reading_loads_nothing_before_it_is_needed() -> None:
    # Arrow's compute makes hundreds of functions when it is loaded: those that use it do that
    needless = (
        "torch", "pydantic", "indexer.config.build", "concurrent.futures", "matplotlib", "pyarrow.compute",
    )  # fmt: skip
    code = (
        "import sys, indexer.commands, indexer.index.read, indexer.display.pages\n"
        f"print([name for name in {needless} if name in sys.modules])"
    )
    assert python("-c", code).stdout == "[]\n"


def test_python_m_is_the_command() -> None:
    done = python("-m", "indexer", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"neuron-indexer {indexer.__version__}\n", "")
    assert "Commands" in python("-m", "indexer").stdout


def test_the_version_is_the_packages() -> None:
    project = ROOT / "pyproject.toml"
    if not project.exists():
        pytest.skip("installed without its source")
    assert tomllib.loads(project.read_text())["project"]["version"] == indexer.__version__


@pytest.mark.parametrize(
    "name", ["build", "top", "bottom", "sample", "histogram", "unit", "sql", "info", "verify", "demo"]
)
def test_every_command_has_help_with_examples(name: str) -> None:
    done = python("-m", "indexer", name, "--help")
    assert done.returncode == 0
    assert "Examples" in done.stdout
    # what stands in brackets is not taken for markup
    if name == "build":
        assert "[:SPLIT]" in done.stdout
    assert f"neuron-indexer {name} " in done.stdout.partition("Examples")[2] + " "


LONG_TABLE = """
import sys, pyarrow as pa
from types import SimpleNamespace
from contextlib import nullcontext
import indexer.commands as commands
table = pa.table({"n": list(range(200_000))})
commands._open = lambda path: nullcontext(SimpleNamespace(sql=lambda query: table))
sys.argv[1:] = ["sql", "x", "SELECT", "--rows", "200000", "--format", sys.argv[1]]
commands.main()
"""


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_a_reader_that_leaves_is_no_error(form: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LONG_TABLE, form],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_is_130(number: signal.Signals) -> None:
    code = (
        "import sys, time, types\n"
        "slow = types.ModuleType('indexer.engines')\n"
        "slow.build = lambda config: (print('started', flush=True), time.sleep(60))\n"
        "sys.modules['indexer.engines'] = slow\n"
        "import indexer.commands\n"
        "sys.argv[1:] = ['build', 'm', 't', '-o', 'x']\n"
        "indexer.commands.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "interrupted\n")


def test_an_encoding_without_bars_is_no_error() -> None:
    code = (
        "import indexer.commands, sys\n"
        "indexer.commands._open = lambda path: __import__('sys').exit(print('\\u2588'))\n"
        "sys.argv[1:] = ['info', 'x']\n"
        "indexer.commands.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60,
        env=ENVIRONMENT | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("\\u2588\n", "")


@pytest.mark.parametrize(("closed", "status"), [(">&-", 0), ("2>&-", 0)])
def test_a_closed_output_is_no_error(closed: str, status: int) -> None:
    command = f'"{sys.executable}" -m indexer --version {closed}'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (status, "")
