"""What a long build says while it runs: share done, tokens/s, time left, memory."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

STEPS = 1000
LINE_SECONDS = 30.0


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage on Linux also remembers the size of the process that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def in_bytes(number: float) -> str:
    """A number of bytes as people read it: 812 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}" if number < 100 else f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def in_tokens(number: float) -> str:
    """A number of tokens as people read it: 12.3k."""
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g}{unit}" if number < 100 or not unit else f"{number:.0f}{unit}"
        number /= 1000
    return f"{number:.3g}T"


@dataclass
class Progress:
    """A bar on a terminal, a line every half minute elsewhere; always on stderr."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    _begin: float = field(default_factory=time.perf_counter)
    _spoke: float = field(default_factory=time.perf_counter)
    _bar: tqdm | None = None

    def __post_init__(self) -> None:
        if self.stream.isatty():
            self._bar = tqdm(
                total=STEPS,
                file=self.stream,
                bar_format="{percentage:3.0f}% {bar} {postfix}, {remaining} left",
                leave=False,
                dynamic_ncols=True,
            )

    def show(self, share: float | None, tokens: int) -> None:
        """share: of the whole work, 0 to 1, None where it is not known; tokens: counted ones so far."""
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        rate = f"{in_tokens(tokens)} tokens, {in_tokens(tokens / seconds)}/s, {in_bytes(peak_memory())}"
        if self._bar is not None:
            self._bar.set_postfix_str(rate, refresh=False)
            self._bar.update(min(STEPS, int(STEPS * (share or 0.0))) - self._bar.n)
        elif time.perf_counter() - self._spoke >= LINE_SECONDS:
            self._spoke = time.perf_counter()
            done = ""
            if share:
                left = seconds * (1 - share) / share
                done = (
                    f"{share:.0%} done, {left / 60:.0f} min left, " if left >= 60 else f"{share:.0%} done, "
                )
            print(f"{done}{rate}", file=self.stream, flush=True)

    def say(self, message: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(message, file=self.stream)
        else:
            print(message, file=self.stream, flush=True)

    def close(self) -> None:
        """Take the bar away; called again, it does nothing."""
        if self._bar is not None:
            self._bar.close()
