"""What is stopped: the commands, what they find, and what must be left when they are repeated."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from benchmarks.report import WrongResultError
from benchmarks.survive_child import POINTS
from indexer import open_index
from indexer.errors import IndexerError

ORDERS = {
    "units": "site, layer, unit",
    "examples": "site, layer, unit, kind, band DESC, rank",
    "histograms": "site, layer, unit, lower, upper",
    "documents": "document",
}
OUTPUT = "a.index"
BUILD, REPLACE, APPEND, MERGE = "build", "build --overwrite", "build --append", "merge"
SHARDS = 3


class Server:
    """The process that forks for every command; to be closed."""

    def __init__(self, model: Path, environment: Mapping[str, str] | None = None) -> None:
        """model: the folder of that of all builds. environment: of the process; None for that of this one."""
        self.model = model
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.survive_child", str(model)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def close(self) -> None:
        """End the process."""
        self._pipe(self._process.stdin).close()
        self._process.wait()

    def run(self, command: Sequence[str], **stopped: Any) -> dict[str, Any]:
        """Run a command, stopped as `stopped` says or not; returns the answer, see survive_child."""
        self._pipe(self._process.stdin).write(json.dumps({"command": command, **stopped}) + "\n")
        self._pipe(self._process.stdin).flush()
        line = self._pipe(self._process.stdout).readline()
        if not line:
            raise WrongResultError("the process that runs the commands ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def whole(self, command: Sequence[str]) -> dict[str, Any]:
        """The answer to a command that nothing happens to. Raises WrongResultError where it fails."""
        answer = self.run(command)
        if answer["status"]:
            raise WrongResultError(f"{' '.join(command)} ends with {answer['status']}: {answer['said']}")
        return answer

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


class Scene:
    """A command, the folder it finds, and what it leaves there when nothing happens to it."""

    def __init__(self, name: str, server: Server, here: Path, command: Sequence[str], found: Path) -> None:
        """found: the folder as the command finds it; here: the copy of it in which the command works."""
        self.name, self.command, self.here = name, command, here
        self._server, self._found = server, found
        self.fresh()
        self.undisturbed = server.whole(command)
        self._left = _names(here)
        self._rows = self._read()

    def fresh(self) -> None:
        """The folder as it was before."""
        shutil.rmtree(self.here, ignore_errors=True)
        shutil.copytree(self._found, self.here)

    def run(self, **stopped: Any) -> dict[str, Any]:
        """The command, stopped or not; returns the server's answer."""
        return self._server.run(self.command, **stopped)

    def left(self, what: str) -> str:
        """What a stopped command left. Raises WrongResultError where an index that is there is not whole."""
        if (self.here / OUTPUT).exists():
            try:
                with open_index(self.here / OUTPUT) as index:
                    index.verify()
            except IndexerError as error:
                raise WrongResultError(f"{what}: {error}") from error
            return "index in place"
        if (self._found / OUTPUT).exists():
            raise WrongResultError(f"{what}: the index that was there is gone")
        if (self.here / f"{OUTPUT}.build" / "checkpoint.json").exists():
            return "checkpoint"
        return "nothing" if _names(self.here) == _names(self._found) else "folder without checkpoint"

    def finish(self, what: str) -> None:
        """Run the command to its end and compare. Raises WrongResultError for anything that differs."""
        answer = self.run()
        if answer["status"]:
            raise WrongResultError(f"{what}: repeated, it ends with {answer['status']}: {answer['said']}")
        names = _names(self.here)
        if names != self._left:
            raise WrongResultError(f"{what}: there lie {', '.join(names)}, and not {', '.join(self._left)}")
        found = self._read()
        differing = [name for name in found if not found[name].equals(self._rows[name])]
        if differing:
            raise WrongResultError(f"{what}: {differing[0]} differ from those of the undisturbed command")

    def points(self) -> list[tuple[str, int, bool]]:
        """Every call of every point: the point, which call, and whether before it."""
        counts = Counter(self.undisturbed["passed"])
        return [
            (point, n, before)
            for point in POINTS
            for n in range(1, counts[point] + 1)
            for before in (True, False)
        ]

    def _read(self) -> dict[str, pa.Table]:
        """Every row of the index, verified in full."""
        with open_index(self.here / OUTPUT) as index:
            index.verify(full=True)
            return {
                name: index.sql(f"SELECT * FROM {name} ORDER BY {order}") for name, order in ORDERS.items()
            }


def scenes(
    server: Server, folder: Path, corpus: Sequence[str], more: Path, piece_bytes: int
) -> dict[str, Scene]:
    """All commands that are stopped, by name; they work in `here` below `folder`.

    corpus, more: what is indexed at first, and what is added. piece_bytes: into what the corpus is cut.
    The build and the one that adds make a checkpoint after every batch, the others none.
    """
    here = folder / "here"
    output = ["--output", str(here / OUTPUT)]
    plain = (
        f"--layers 0 --bottom 2 --context 48 --batch-tokens 512 --threads 1 --piece-bytes {piece_bytes}"
    ).split()
    build = ["build", str(server.model), *corpus, *output, *plain]
    once = [*build, "--checkpoint-minutes", "5"]
    top = ["--top", "3"]
    each = [*top, "--checkpoint-minutes", "0"]
    commands = {
        BUILD: [*build, *each],
        REPLACE: [*once, *top, "--overwrite"],
        APPEND: ["build", str(server.model), str(more), *output, *plain, *each, "--append"],
        MERGE: ["merge", str(here / f"{OUTPUT}.shards"), *output],
    }
    before = {
        BUILD: [],
        REPLACE: [[*once, "--top", "2"]],
        APPEND: [[*once, *top]],
        MERGE: [[*once, *top, "--shard", f"{shard}/{SHARDS}"] for shard in range(SHARDS)],
    }
    found = {}
    for number, (name, command) in enumerate(commands.items()):
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        for earlier in before[name]:
            server.whole(earlier)
        found[name] = Scene(name, server, here, command, here.rename(folder / f"found-{number}"))
    return found


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
