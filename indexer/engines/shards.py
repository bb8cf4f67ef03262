"""Where the partial indexes of a build in shards lie, and how they become one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from indexer.config import BuildConfig
from indexer.errors import IndexerError
from indexer.index.manifest import sha256
from indexer.index.schema import MANIFEST
from indexer.index.scratch import put_right
from indexer.index.unfinished import BUILD_SUFFIX, SHARDS_SUFFIX, last_progress
from indexer.progress import Progress
from indexer.work.durable import remove, told


def shards_folder(output: Path) -> Path:
    """The folder of the partial indexes of `output`."""
    return output.with_name(output.name + SHARDS_SUFFIX)


def shard_output(output: Path, shard: int, shards: int) -> Path:
    """Where the partial index of one shard goes."""
    width = len(str(shards))
    return shards_folder(output) / f"{shard:0{width}}-of-{shards}.index"


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
    from indexer.building.run import build
    from indexer.partials.agreement import merged_into

    # says that it is finished, or in what it differs
    build(config)
    clear_merged(shards_folder(config.output), "*-of-*.index", merged_into(config.output))
    return True


def shard_progress(output: Path, finished: bool = False) -> tuple[float, int]:
    """The share of its work that the build of one shard has done, 0 to 1, and its tokens.

    output: where its partial index goes. finished: whether it is known to be done, on another disk perhaps.
    """
    if (output / MANIFEST).exists():
        return 1.0, int(last_progress(output).get("tokens", 0))
    found = last_progress(output.with_name(output.name + BUILD_SUFFIX))
    return 1.0 if finished else float(found.get("share") or 0.0), int(found.get("tokens", 0))


def stopped(output: Path) -> str:
    """One line after Ctrl-C: what the builds of shards leave. A folder with nothing in it is removed."""
    folder = shards_folder(output)
    with suppress(OSError):
        folder.rmdir()
    parts = sorted(folder.glob("*-of-*")) if folder.is_dir() else []
    finished = [path for path in parts if (path / MANIFEST).exists()]
    begun = [path for path in parts if path.name.endswith(BUILD_SUFFIX)]
    tokens = sum(int(last_progress(path).get("tokens", 0)) for path in finished)
    tokens += sum(int(last_progress(path, "checkpoint").get("tokens", 0)) for path in begun)
    if not tokens:
        return f"stopped before there was anything to keep; {output} is as it was"
    return f"stopped; {tokens:,} tokens are kept in {folder}, and the same command continues there"


def clear_merged(folder: Path, name: str, merged: Sequence[str]) -> None:
    """Remove partial indexes of a name (a pattern) that are merged, then their folder, where it is empty.

    merged: SHA-256 of the manifests of those that are. What was in the middle of being removed goes too.
    """
    for path in [path for path in folder.glob(name) if path.is_dir() and not path.is_symlink()]:
        if not (path / MANIFEST).exists() or sha256(path / MANIFEST) in merged:
            remove(path)
    with suppress(OSError):
        folder.rmdir()


def make_folder(folder: Path) -> None:
    """Make a folder for partial indexes, where there is none. Raises IndexerError where the disk fails."""
    with told(folder, "Nothing was begun; make room, then run the same command again"):
        folder.mkdir(exist_ok=True)


def build_shard(config: BuildConfig) -> Path:
    """Build the shard that `config` names; returns the folder of its partial index."""
    assert config.shard is not None
    make_folder(shards_folder(config.output))
    from indexer.building.run import build

    return build(config.model_copy(update={"output": shard_output(config.output, *config.shard)}))


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
