"""What a machine without a network lacks: wheels made small enough to carry, and unpacked where needed.

    python3 benchmarks/wheels.py slim WHEEL FOLDER      a copy of Triton's wheel with what NVIDIA needs alone
    python3 benchmarks/wheels.py unpack FOLDER SITE     those wheels that this Python lacks, or has too old

It needs the standard library alone, since it runs where nothing is installed yet. Wheels are unpacked as the
archives they are and not installed: that takes no pip, no network, no right to write into the machine's own
packages, and a folder first on PYTHONPATH hides what is too old without changing it. None of the wheels has
a .data folder, which alone would need more than unpacking; one that does is refused.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Of 1,043 MB in triton 3.9.0, what neither importing it nor compiling and running from sm_90 on touches:
# AMD's libraries, the profiler's, headers, the test tools, the disassembler, and the assembler for GPUs up to
# sm_89; `ptxas-blackwell` is the one for all later ones.
NOT_NEEDED = re.compile(
    r"triton/(include/|plugins/|FileCheck|_C/libproton|instrumentation/.*\.so|backends/amd/(lib|include)/"
    r"|backends/nvidia/(lib/cupti|include/.*cupti|bin/(ptxas$|nvdisasm|cuobjdump)))"
)
FLOOR = re.compile(r"^([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*\(?(>=|==)\s*([0-9][0-9.]*)")
ROOT = Path(__file__).parents[1]


def slim(wheel: Path, folder: Path) -> Path:
    """A copy of a wheel without what NOT_NEEDED names, its libraries stripped, compressed by LZMA.

    Returns the copy, of the same name. Cost: minutes, most of them spent in compressing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / wheel.name
    lines: list[tuple[str, str, object]] = []
    with (
        zipfile.ZipFile(wheel) as whole,
        zipfile.ZipFile(made, "w", zipfile.ZIP_LZMA) as small,
        tempfile.TemporaryDirectory() as scratch,
    ):
        listing = next(name for name in whole.namelist() if name.endswith(".dist-info/RECORD"))
        for entry in whole.infolist():
            if entry.is_dir() or entry.filename == listing or NOT_NEEDED.match(entry.filename):
                continue
            content = whole.read(entry)
            if entry.filename.endswith(".so"):
                content = _stripped(content, Path(scratch) / "library.so")
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            lines.append((entry.filename, f"sha256={digest}", len(content)))
            kept = zipfile.ZipInfo(entry.filename, entry.date_time)
            kept.external_attr, kept.compress_type = entry.external_attr, zipfile.ZIP_LZMA
            small.writestr(kept, content)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*lines, (listing, "", "")])
        small.writestr(listing, text.getvalue())
    return made


def _stripped(library: bytes, scratch: Path) -> bytes:
    """A shared library without symbols that no loader looks up."""
    scratch.write_bytes(library)
    subprocess.run(["strip", "--strip-unneeded", scratch], check=True)
    return scratch.read_bytes()


def unpack(folder: Path, site: Path) -> dict[str, dict[str, str | None]]:
    """Unpack wheels that this Python lacks, has too old, or that another one unpacked needs.

    Returns, by package, the version that is unpacked and the one that was found. Raises ValueError for a
    wheel that takes more than unpacking.
    """
    wheels = {_name(path.name.split("-")[0]): path for path in sorted(folder.glob("*.whl"))}
    floors = _floors()
    taken: dict[str, dict[str, str | None]] = {}
    # what is unpacked may need more of what else is there
    while missing := [name for name in wheels if name not in taken and not _is_met(name, floors)]:
        for name in missing:
            path = wheels[name]
            with zipfile.ZipFile(path) as archive:
                if any(".data/" in entry for entry in archive.namelist()):
                    raise ValueError(f"{path.name} has a .data folder, and has to be installed by pip")
                archive.extractall(site)
                metadata = next(entry for entry in archive.namelist() if entry.endswith("dist-info/METADATA"))
                for line in archive.read(metadata).decode().splitlines():
                    if line.startswith("Requires-Dist: ") and ";" not in line:
                        floors += _read_floors([line.removeprefix("Requires-Dist: ")])
            taken[name] = {"unpacked": path.name.split("-")[1], "found": _installed(name)}
    # archives of this kind do not say who may run what
    for program in site.glob("triton/backends/nvidia/bin/*"):
        program.chmod(0o755)
    return taken


def _floors() -> list[tuple[str, str, str]]:
    """(package, '>=' or '==', version) that this project asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    asked = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    return _read_floors([*asked, *extras["build"], *extras["gpu"], *extras["dev"]])


def _read_floors(asked: list[str]) -> list[tuple[str, str, str]]:
    found = [FLOOR.match(line) for line in asked]
    return [(_name(one[1]), one[2], one[3]) for one in found if one is not None]


def _is_met(name: str, floors: list[tuple[str, str, str]]) -> bool:
    """Whether this Python's own package is there and does."""
    installed = _installed(name)
    if installed is None:
        return False
    for package, relation, asked in floors:
        if package == name and (
            _number(installed) < _number(asked) or (relation == "==" and _number(installed) != _number(asked))
        ):
            return False
    return True


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


def _number(text: str) -> tuple[int, ...]:
    """2.11.0+cu130 as (2, 11): numbers up to the first part that is none, zeros at the end left out."""
    numbers = []
    for part in text.split("+")[0].split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    if len(arguments) != 3 or arguments[0] not in ("slim", "unpack"):
        print(__doc__, file=sys.stderr)
        return 2
    first, second = Path(arguments[1]), Path(arguments[2])
    if arguments[0] == "slim":
        made = slim(first, second)
        print(f"{made}: {made.stat().st_size / 1e6:.1f} MB, of {first.stat().st_size / 1e6:.1f} MB")
    else:
        print(json.dumps(unpack(first, second), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
