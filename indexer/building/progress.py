"""What a long build says while it runs: share done, tokens/s, time left, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from indexer.talk import in_bytes, in_time, in_tokens

STEPS = 1000
LINE_SECONDS = 30.0
MOST_WORKERS_SHOWN = 8
# bytes of statistics a second, about: what the writing of an index is expected to take before one was written
WRITING_SPEED = 200e6


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage on Linux also remembers the size of the process that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


class Course:
    """How far a build is: the pass over the corpus, then the writing of the index.

    writing_seconds: how long the writing takes, about.
    share: of the time of both what is behind, 0 to 1, never less than before; None where it is not known.
    """

    def __init__(self, writing_seconds: float = 0.0) -> None:
        self.writing_seconds = writing_seconds
        self.share: float | None = None
        self._passed = 0.0

    def run(self, share: float | None, seconds: float) -> None:
        """Of the pass this share is done, after so many seconds of it."""
        if share is not None:
            # the pass takes seconds / share
            whole = seconds + share * self.writing_seconds
            self.share = max(self.share or 0.0, share * seconds / whole if whole else 0.0)
            self._passed = self.share

    def written(self, share: float) -> None:
        """The pass is done, and this share of the writing."""
        self.share = self._passed + (1 - self._passed) * share


@dataclass
class Progress:
    """A bar on a terminal, a line every half minute elsewhere; always on stderr."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    _begin: float = field(default_factory=time.perf_counter)
    _spoke: float = field(default_factory=time.perf_counter)
    _share_before: float | None = 0.0
    _tokens_before: int = 0
    _bar: tqdm | None = None

    def __post_init__(self) -> None:
        if self.stream.isatty():
            self._bar = tqdm(
                total=STEPS,
                file=self.stream,
                bar_format="{percentage:3.0f}% {bar} {postfix}",
                leave=False,
                dynamic_ncols=True,
            )

    def start(self, share: float | None = 0.0, tokens: int = 0) -> None:
        """The work, or a part of it with a pace of its own, begins now.

        share, tokens: what was done of it before; None where that share is not known.
        """
        self._begin = time.perf_counter()
        self._share_before, self._tokens_before = share, tokens

    def rate(self, share: float | None, tokens: int) -> tuple[float, float | None]:
        """Tokens/s since `start`, and the seconds left at that pace, None where it is not known."""
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        before = self._share_before
        if share is None or before is None or share <= before:
            left = None
        else:
            left = seconds * max(0.0, 1 - share) / (share - before)
        return (tokens - self._tokens_before) / seconds, left

    def show(self, share: float | None, tokens: int) -> None:
        """share: of the whole work, 0 to 1, None where it is not known; tokens: counted ones so far."""
        speed, left = self.rate(share, tokens)
        rate = f"{in_tokens(tokens)} tokens, {in_tokens(speed)}/s, {in_bytes(peak_memory())}"
        self._draw(share, rate, left)

    def show_share(self, share: float | None, what: str = "") -> None:
        """How far work without tokens is; what: its name."""
        text = f"{what}, {in_bytes(peak_memory())}" if what else in_bytes(peak_memory())
        self._draw(share, text, self.rate(share, 0)[1])

    def start_sum(self, parts: Sequence[tuple[float, int]]) -> None:
        """Several workers begin now; see `show_sum`."""
        self.start(*_sum(parts))

    def show_sum(self, parts: Sequence[tuple[float, int]]) -> None:
        """How far several workers are: the share that each has done of its own part, and its tokens."""
        share, tokens = _sum(parts)
        speed, left = self.rate(share, tokens)
        each = " ".join(f"{part[0]:.0%}" for part in parts) if len(parts) <= MOST_WORKERS_SHOWN else ""
        text = f"{in_tokens(tokens)} tokens, {in_tokens(speed)}/s {each}".rstrip()
        self._draw(share, text, left, "left until the merge")

    def _draw(self, share: float | None, rate: str, left: float | None, word: str = "left") -> None:
        if self._bar is not None:
            text = rate if left is None else f"{rate}, {in_time(left)} {word}"
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(min(STEPS, int(STEPS * (share or 0.0))) - self._bar.n)
        elif time.perf_counter() - self._spoke >= LINE_SECONDS:
            self._spoke = time.perf_counter()
            done = f"{share:.0%} done, " if share else ""
            if left is not None and left >= 60:
                done += f"{in_time(left)} {word}, "
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


def _sum(parts: Sequence[tuple[float, int]]) -> tuple[float, int]:
    return sum(share for share, _ in parts) / len(parts), sum(tokens for _, tokens in parts)
