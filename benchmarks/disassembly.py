"""Reads a compiled GPU kernel with the disassembler that the package triton carries."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", re.MULTILINE)
BRANCH = re.compile(r"\bBRA\S*\s.*?\b0x([0-9a-f]+)$")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")


@dataclass(frozen=True)
class Machine:
    """A kernel as the hardware sees it.

    spills: instructions on local memory. global_atomics: instructions, not how often they run.
    loop_elements: shared-memory atomics of the hot loop, one per element; loop: its instructions by name.
    reads_first: reads of global memory among its first 32 instructions, which are under way together.
    instructions_per_element: 0 without such a loop.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: int
    spills: int
    global_atomics: int
    loop_elements: int
    loop: dict[str, int]
    reads_first: int

    @property
    def instructions_per_element(self) -> float:
        return round(sum(self.loop.values()) / self.loop_elements, 2) if self.loop_elements else 0.0

    def figures(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "instructions_per_element": self.instructions_per_element}


def take_apart(path: Path, shared_bytes: int) -> Machine:
    """Figures of the one kernel in a cubin file; shared_bytes as the compiler reports them."""
    usage = USAGE.search(_printed("-res-usage", path))
    assert usage is not None
    code = [(int(at, 16), text) for at, text in INSTRUCTION.findall(_printed("-sass", path))]
    assert code
    names = [_name(text) for _, text in code]
    loop = _hot_loop(code)
    return Machine(
        registers=int(usage[1]),
        stack_bytes=int(usage[2]),
        shared_bytes=shared_bytes,
        instructions=len(code),
        spills=sum(name in ("LDL", "STL") for name in names),
        global_atomics=sum(name in ("ATOM", "ATOMG", "RED", "REDG") for name in names),
        loop_elements=loop.count("ATOMS"),
        loop=dict(Counter(loop).most_common()),
        reads_first=loop[:32].count("LDG"),
    )


def _printed(option: str, path: Path) -> str:
    from triton import knobs

    command = [knobs.nvidia.cuobjdump.path, option, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _name(text: str) -> str:
    """An instruction without predicate, operands and qualifiers."""
    return re.sub(r"^@\S+\s+", "", text).split()[0].split(".")[0]


def _hot_loop(code: list[tuple[int, str]]) -> list[str]:
    """Instructions of the innermost loop with the most shared-memory atomics; empty without one."""
    place = {at: number for number, (at, _) in enumerate(code)}
    best: list[str] = []
    for number, (_, text) in enumerate(code):
        branch = BRANCH.search(text)
        first = place.get(int(branch[1], 16), number) if branch else number
        names = [_name(one) for _, one in code[first : number + 1]]
        if first < number and names.count("BRA") == 1 and names.count("ATOMS") > best.count("ATOMS"):
            best = names
    return best
