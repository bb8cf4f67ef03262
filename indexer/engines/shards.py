"""Where the partial indexes of a build in shards lie, how far they are, and how they become one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from indexer.building.durable import remove
from indexer.building.progress import Progress
from indexer.building.signals import StopRequest
from indexer.config.build import BuildConfig
from indexer.errors import IndexerError
from indexer.index.manifest import sha256
from indexer.index.output import in_one_line
from indexer.index.schema import MANIFEST
from indexer.index.scratch import given_back, put_right, taken
from indexer.index.unfinished import BUILD_SUFFIX, SHARDS_SUFFIX, last_progress

_KEPT = "Nothing was begun; make room, then run the same command again"


def shards_folder(output: Path) -> Path:
    """The folder of the partial indexes of `output`."""
    return output.with_name(output.name + SHARDS_SUFFIX)


def shard_output(output: Path, shard: int, shards: int) -> Path:
    """Where the partial index of one shard goes."""
    width = len(str(shards))
    return shards_folder(output) / f"{shard:0{width}}-of-{shards}.index"


@contextmanager
def held_shards(output: Path) -> Iterator[Path]:
    """The folder of the partial indexes of `output`, which no other engine works in within the block.

    What is merged is removed, before the block and after it, and the folder where nothing is left in it.
    Raises IndexerError where another process builds there, and where the disk fails.
    """
    folder = shards_folder(output)
    with in_one_line(f"{folder}: cannot be written", _KEPT):
        lock = taken(folder)
    if lock is None:
        raise IndexerError(f"{folder}: another process is building {output}; wait for it or stop it")
    try:
        # an earlier call may have been stopped before it could tidy up
        clear_merged(folder, output)
        yield folder
        # all is done, so that there is nothing left to stop
        with StopRequest():
            clear_merged(folder, output)
    finally:
        given_back(folder, lock)


def count_of_shards(config: BuildConfig) -> int | None:
    """Into how many shards an earlier call cut this build; None where there was none.

    Raises IndexerError where that is not what is asked for now: shards of different cuts overlap.
    """
    folder = shards_folder(config.output)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    counts = {name.split(".")[0].split("-of-")[1] for name in names if "-of-" in name}
    found = sorted(int(count) for count in counts if count.isdecimal())
    wanted = config.shards or (config.workers if config.workers > 1 else None)
    if len(found) > 1 or (found and wanted not in (None, found[0])):
        raise IndexerError(
            f"{folder}: holds shards of a build cut into {' and '.join(map(str, found))}, not {wanted}; give "
            "the same number to continue, or remove the folder"
        )
    return found[0] if found else None


def is_finished(config: BuildConfig) -> bool:
    """Whether the index that is asked for is there, of whatever engine; its shards are cleared away then.

    Raises IndexerError where there is another one, which is not to be replaced.
    """
    if config.overwrite or not (config.output / MANIFEST).is_file():
        return False
    from indexer.building.run import is_finished as is_built

    if not is_built(config):
        return False
    if shards_folder(config.output).is_dir():
        # where another process builds there, it clears them away
        with suppress(IndexerError), held_shards(config.output):
            pass
    return True


class Standing:
    """How far the builds of some shards are. One that is done is not looked at again.

    parts: of each shard the share of its work that is done, 0 to 1, and its tokens.
    """

    def __init__(self, outputs: Sequence[Path]) -> None:
        """outputs: where the partial indexes go."""
        self._outputs = outputs
        self.parts = [(0.0, 0)] * len(outputs)
        self.look(range(len(outputs)))

    def look(self, shards: Iterable[int]) -> None:
        """See how far some of them are, by their numbers."""
        for shard in shards:
            if self.parts[shard][0] < 1.0:
                # a build that is just being put in place has no folder to be asked
                self.parts[shard] = max(self.parts[shard], shard_progress(self._outputs[shard]))

    def done(self, shard: int, tokens: int) -> None:
        """One is known to be done, on another disk perhaps."""
        self.parts[shard] = (1.0, tokens)


def shard_progress(output: Path) -> tuple[float, int]:
    """The share of its work that the build of one shard has done, 0 to 1, and its tokens."""
    found = last_progress(output.with_name(output.name + BUILD_SUFFIX))
    if (output / MANIFEST).exists():
        return 1.0, int(last_progress(output).get("tokens", 0))
    return float(found.get("share") or 0.0), int(found.get("tokens", 0))


def kept_tokens(output: Path) -> int:
    """The tokens of the shard that goes to `output` which nobody has to run again."""
    if (output / MANIFEST).exists():
        return int(last_progress(output).get("tokens", 0))
    return int(last_progress(output.with_name(output.name + BUILD_SUFFIX), "checkpoint").get("tokens", 0))


def stopped(output: Path) -> str:
    """One line after Ctrl-C: what the builds of shards leave."""
    folder = shards_folder(output)
    names = {path.name.removesuffix(BUILD_SUFFIX) for path in folder.glob("*-of-*")}
    tokens = sum(kept_tokens(folder / name) for name in names)
    if not tokens:
        return f"stopped before there was anything to keep; {output} is as it was"
    return f"stopped; {tokens:,} tokens are kept in {folder}, and the same command continues there"


def clear_merged(folder: Path, output: Path) -> None:
    """Remove the partial indexes in a folder that `output` was merged from.

    What was in the middle of being removed goes too.
    """
    if not (output / MANIFEST).is_file():
        return
    from indexer.partials.agreement import merged_into

    merged = []
    # one that is damaged may still be replaced
    with suppress(IndexerError):
        merged = merged_into(output)
    for path in [path for path in folder.glob("*.index") if path.is_dir() and not path.is_symlink()]:
        if not (path / MANIFEST).exists() or sha256(path / MANIFEST) in merged:
            remove(path)


def build_shard(config: BuildConfig) -> Path:
    """Build the shard that `config` names; returns the folder of its partial index."""
    assert config.shard is not None
    output = shard_output(config.output, *config.shard)
    with in_one_line(f"{output.parent}: cannot be written", _KEPT):
        output.parent.mkdir(exist_ok=True)
    from indexer.building.run import build

    return build(config.model_copy(update={"output": output}))


def merge_parts(parts: Sequence[Path], output: Path, *, overwrite: bool = False) -> Path:
    """Merge partial indexes into `output`; a folder of shards stands for all of them.

    Where `output` is what they give, it is left as it is: a call that was stopped can be repeated.
    Raises IndexerError where one is missing, unfinished, or does not belong to the others.
    """
    from indexer.partials.agreement import is_merged
    from indexer.partials.merge import merge_indexes

    put_right(output.resolve())
    inputs = [path for part in parts for path in _expanded(part)]
    progress = Progress()
    added_to = output.resolve() in [path.resolve() for path in inputs]
    try:
        if (added_to or not overwrite) and is_merged(inputs, output):
            progress.say(f"{output} is merged already, of the same indexes")
            return output
        return merge_indexes(inputs, output, overwrite=overwrite, progress=progress.show_share)
    finally:
        progress.close()


def _expanded(part: Path) -> list[Path]:
    if (part / MANIFEST).exists() or not part.is_dir():
        return [part]
    inside = sorted(path for path in part.iterdir() if path.is_dir() and not path.name.startswith("."))
    unfinished = [path for path in inside if path.name.endswith(BUILD_SUFFIX)]
    if unfinished:
        raise IndexerError(
            f"{unfinished[0]}: this shard is not finished; run its build again, the same command continues it"
        )
    found = [path for path in inside if (path / MANIFEST).exists()]
    if not found:
        raise IndexerError(f"{part}: neither an index nor a folder of the indexes of shards")
    counts = {path.name.split(".")[0].split("-of-")[-1] for path in found if "-of-" in path.name}
    for count in counts:
        missing = [
            number
            for number in range(int(count) if count.isdecimal() else 0)
            if not (part / shard_output(part, number, int(count)).name).exists()
        ]
        if missing:
            raise IndexerError(
                f"{part}: shard {missing[0]} of {count} is missing ({len(missing)} are); build it with "
                f"--shard {missing[0]}/{count}"
            )
    return found
