"""Where the partial indexes of a build in shards lie, and how they become one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from indexer.config import BuildConfig
from indexer.errors import IndexerError
from indexer.index.unfinished import BUILD_SUFFIX, SHARDS_SUFFIX
from indexer.progress import Progress


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


def build_shard(config: BuildConfig) -> Path:
    """Build the shard that `config` names; returns the folder of its partial index."""
    assert config.shard is not None
    folder = shards_folder(config.output)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise IndexerError(f"{folder}: cannot be made: {error.strerror}") from error
    from indexer.pipeline import build

    return build(config.model_copy(update={"output": shard_output(config.output, *config.shard)}))


def merge_parts(parts: Sequence[Path], output: Path, *, overwrite: bool = False) -> Path:
    """Merge partial indexes into `output`; a folder of shards stands for all of them.

    Raises IndexerError where one is missing, unfinished, or does not belong to the others.
    """
    from indexer.partials.merge import merge_indexes

    inputs = [path for part in parts for path in _expanded(part)]
    progress = Progress()
    try:
        return merge_indexes(inputs, output, overwrite=overwrite, progress=progress.show_share)
    finally:
        progress.close()


def _expanded(part: Path) -> list[Path]:
    if (part / "manifest.json").exists() or not part.is_dir():
        return [part]
    inside = sorted(path for path in part.iterdir() if path.is_dir() and not path.name.startswith("."))
    unfinished = [path for path in inside if path.name.endswith(BUILD_SUFFIX)]
    if unfinished:
        raise IndexerError(
            f"{unfinished[0]}: this shard is not finished; run its build again, the same command continues it"
        )
    found = [path for path in inside if (path / "manifest.json").exists()]
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
