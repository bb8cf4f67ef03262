"""Commands killed with SIGKILL at random moments and at every named point, then repeated until they are done.

A killed build is started again by the same command, and may be killed again; what it leaves at last must be,
row for row, the index of a build that nothing happened to, verified in full, with nothing beside it. The
named points are also those of `merge`, of `build --append` and of `build --overwrite`; an index that one of
them is to replace is whole at every moment.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.options import option, settings_of
from benchmarks.report import Report, Table, WrongResultError, say
from benchmarks.survive_scenes import BUILD, Scene, Server, scenes
from indexer.commands.demo import model_folder, write_corpus

MOST_KILLS = 4
CHARACTERS_PER_TOKEN = 4
PIECES = 3
MORE = "def merged(parts):\n    return sorted(parts)\n" * 20


@dataclass(frozen=True)
class Options:
    builds: int = option(100, "builds killed at random moments", quick=2)
    points: int = option(1_000, "at most so many kills at named points of each command", quick=2)
    tokens: int = option(1_500, "tokens of the corpus at least; whole texts are taken")


def run(options: Options) -> Report:
    """Kill, repeat, compare. Raises WrongResultError for the first index that is not as it should be."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        server = Server(model_folder())
        stack.callback(server.close)
        characters = CHARACTERS_PER_TOKEN * options.tokens
        corpus = write_corpus(folder / "corpus", characters)
        # read in one batch, so that what is killed is the merge for the most part
        more = folder / "more.txt"
        more.write_text(MORE)
        found = scenes(server, folder, corpus, more, characters // PIECES)
        states: Counter[str] = Counter()
        kills = _at_random(found[BUILD], options.builds, states)
        points = _points(found, options.points)
        for number, (name, point, n, before) in enumerate(points, 1):
            _at_point(found[name], point, n, before, states)
            say(f"point {number} of {len(points)}, of {name}: equal")
    seconds = found[BUILD].undisturbed["seconds"]
    return _report(options, seconds, kills, Counter(name for name, *_ in points), states)


def _at_random(scene: Scene, builds: int, states: Counter[str]) -> int:
    """So many builds, each killed once or more; returns the number of kills."""
    chosen, kills = random.Random(0), 0
    for number in range(1, builds + 1):
        what, killed = f"killed at random moments, build {number}", 0
        # a build may be done before the moment has come
        while not killed:
            scene.fresh()
            for _ in range(chosen.randint(1, MOST_KILLS)):
                moment = chosen.uniform(0, scene.undisturbed["seconds"])
                killed += scene.run(seconds=moment)["status"] < 0
                states[scene.left(what)] += 1
        scene.finish(what)
        kills += killed
        say(f"build {number} of {builds}, {killed} times killed: equal")
    return kills


def _at_point(scene: Scene, point: str, n: int, before: bool, states: Counter[str]) -> None:
    what = f"{scene.name}, killed {'before' if before else 'after'} call {n} of: {point}"
    scene.fresh()
    if scene.run(point=point, n=n, before=before)["status"] >= 0:
        raise WrongResultError(f"{what}: it was not reached")
    states[scene.left(what)] += 1
    scene.finish(what)


def _points(found: Mapping[str, Scene], most: int) -> list[tuple[str, str, int, bool]]:
    """Every call of every point of every command; where one has more than `most`, as many, spread out."""
    chosen = []
    for name, scene in found.items():
        points = scene.points()
        step = max(1.0, len(points) / most)
        # from the middle of each stretch: the first and the last call are no better than others
        places = (int((number + 0.5) * step) for number in range(round(len(points) / step)))
        chosen += [(name, *points[place]) for place in places]
    return chosen


def _report(
    options: Options, seconds: float, kills: int, points: Counter[str], states: Counter[str]
) -> Report:
    results = {
        "builds": options.builds,
        "kills": kills,
        "points": points.total(),
        "points_of": dict(points),
        "equal": options.builds + points.total(),
        "undisturbed_seconds": seconds,
        "left": dict(states),
    }
    rows: list[tuple[str, ...]] = [("builds, at random moments", f"{options.builds}", f"{options.builds}")]
    rows += [(f"{name}, at named points", f"{number}", f"{number}") for name, number in points.items()]
    table = Table("Killed commands, repeated until done", ("", "commands", "equal"), rows)
    lay = ", ".join(f"{name} {number}" for name, number in states.items())
    notes = [f"{kills} kills at random; after every command that was to be killed there lay: {lay}"]
    checks = [
        "every row of every table equals that of an undisturbed command, every index passes verify --full, "
        "nothing is left beside it, and an index that was to be replaced or added to was whole after every "
        "kill"
    ]
    return Report(settings_of(options), checks, results, [table], notes)
