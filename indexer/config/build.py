"""What a build is asked to do: every option of the `build` command, checked once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from indexer.config.quantities import BYTES, COUNTS, whole_number
from indexer.names import MLP, format_layers

# what the arrays of a build hold
LARGEST = 2**63 - 1


def _whole(units: Mapping[str, int], examples: str) -> BeforeValidator:
    def read(value: object) -> int:
        number = whole_number(value, units)
        if number is None:
            raise ValueError(f"should be a whole number, as {examples}")
        if abs(number) > LARGEST:
            raise ValueError(f"should be at most {LARGEST}")
        return number

    return BeforeValidator(read)


def _shard(value: object) -> object:
    """I/N as its two numbers; anything else is left to be refused."""
    if isinstance(value, str) and value.count("/") == 1:
        return tuple(value.split("/"))
    return value


def _window(value: object) -> object:
    """BEFORE,AFTER as two numbers."""
    if not isinstance(value, str):
        return value
    parts = value.split(",")
    if len(parts) != 2:
        raise ValueError("should be tokens before and after the peak, as 48,15")
    return tuple(parts)


def _sites(value: object) -> object:
    """Names with commas between them."""
    return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value


def _layers(value: object) -> object:
    """A layer's number, or several, as the text that the command line takes."""
    if value is None or isinstance(value, str):
        return value
    given: Iterable[Any] = value if isinstance(value, list | tuple | range | set) else [value]
    numbers = [whole_number(number) for number in given]
    known = [number for number in numbers if number is not None and number >= 0]
    if not numbers or len(known) < len(numbers):
        raise ValueError("should be numbers of layers, from 0 on, as [0, 5], or text, as 0-5,7")
    return format_layers(known)


def _sources(value: object) -> object:
    """One source is as good as a list of it."""
    sources = (value,) if isinstance(value, str | Path) else value
    if sources in ((), []):
        raise ValueError("should name files, folders or data sets")
    return sources


def _output(value: Path) -> Path:
    """A folder that others can lie beside."""
    if not value.absolute().name:
        raise ValueError("should name a folder to be made")
    return value


# a path is as good as its text
Source = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
_as_written = _whole(COUNTS, "1000, 2k, 1e6 or 10M")
# more than a window or a page takes; what of it has no room is told with the figures
Places = Annotated[int, Field(ge=0, le=1_000_000), _as_written]
Count = Annotated[int, Field(ge=1), _as_written]
# far more than any machine has; OpenMP runtimes end the process when asked for a million
Processors = Annotated[int, Field(ge=1, le=1024), _as_written]
Bytes = Annotated[int, Field(ge=1), _whole(BYTES, "1000000, 64MB or 64MiB")]
Shard = Annotated[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]], BeforeValidator(_shard)]


class Reach(Enum):
    """How far the value of an option reaches. Without a mark it decides the rows of the whole index.

    RUN: it says where and how a build runs, and may change when a build is continued; or what it leads to, as
    the model's digest and dtype, is compared in its place. PART: a build keeps it to its end, but the parts
    of one index may differ in it.
    """

    RUN = "run"
    PART = "part"


class BuildConfig(BaseModel):
    """Everything that decides what a build computes and where it puts it; stored whole in the manifest.

    Raises pydantic.ValidationError for unknown keys and for values out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[Source, Reach.RUN]
    corpus: Annotated[tuple[Source, ...], BeforeValidator(_sources), Reach.RUN]
    output: Annotated[Path, AfterValidator(_output), Reach.RUN]
    sites: Annotated[tuple[str, ...], BeforeValidator(_sites), Reach.RUN] = Field(
        (MLP,), min_length=1, description="kinds of place to index, as mlp or [mlp]"
    )
    layers: Annotated[str | None, BeforeValidator(_layers), Reach.RUN] = Field(
        None, min_length=1, description="layers to index, as 0-5,7 or [0, 5]; all of them where not given"
    )
    top: Places = 20
    bottom: Places = 20
    by: Literal["sequence", "token", "document"] = "sequence"
    context: Annotated[int, Field(ge=3), _as_written] = 256
    window: Annotated[tuple[Places, Places], BeforeValidator(_window)] = (48, 15)
    max_tokens: Count | None = None
    share: float = Field(1.0, gt=0, le=1, description="of the documents, chosen by hash; 0.1 is a tenth")
    seed: Annotated[int, Field(ge=0), _as_written] = Field(0, description="what else `share` chooses by")
    batch_tokens: Annotated[Count | None, Reach.PART] = Field(
        None, description="tokens of a batch; 4096 on the CPU, on a GPU chosen from its free memory"
    )
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Reach.RUN] = "auto"
    device: Annotated[str, Reach.RUN] = "auto"
    attention: Annotated[
        Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"],
        Reach.RUN,
    ] = Field("auto", description="how attention is computed; auto: as config.json or transformers has it")
    kernels: Annotated[Literal["auto", "cpp", "triton", "reference"], Reach.RUN] = "auto"
    padding: Annotated[Literal["auto", "never"], Reach.RUN] = Field(
        "auto", description="never: batches of one length, without padding; auto: where the model needs it"
    )
    text_column: str = Field("text", description="column of texts or chats, a.b for column b within a")
    ids_column: str | None = Field(
        None, min_length=1, description="column of token ids made beforehand, run as they are, not of texts"
    )
    count_special_tokens: bool = False
    no_special_tokens: bool = Field(False, description="leave out what the tokenizer puts around a text")
    on_bad_text: Literal["error", "replace", "skip"] = "error"
    quoting: Literal["standard", "none"] = Field("standard", description="of CSV; none: quotes are text")
    output_projection: str | None = None
    revision: Annotated[str | None, Reach.RUN] = None
    hooks: bool = Field(False, description="read activations by hooks even where the fused path is possible")
    compile: bool = Field(False, description="let torch.compile fuse what stands around the MLPs")
    threads: Annotated[Processors | None, Reach.RUN] = None
    overwrite: Annotated[bool, Reach.RUN] = False
    append: Annotated[bool, Reach.RUN] = Field(
        False, description="add the corpus to the finished index at `output`"
    )
    numerics: Literal["fast", "reproducible"] = Field(
        "fast", description="reproducible: fixed batch shapes, so batching never changes a result"
    )
    checkpoint_minutes: Annotated[float, Field(ge=0, allow_inf_nan=False), Reach.RUN] = 5.0
    piece_bytes: Annotated[Bytes, Reach.PART] = Field(
        64 << 20, description="the corpus is cut into pieces of about so many bytes; shards are made of them"
    )
    shard: Annotated[Shard | None, Reach.PART] = Field(
        None, description="build shard I of N alone, as a partial index to be merged"
    )
    workers: Annotated[Processors, Reach.RUN] = 1
    ray: Annotated[str | None, Reach.RUN] = Field(
        None, description="address of a Ray cluster, or local, to share the work out to"
    )
    shards: Annotated[Count | None, Reach.RUN] = Field(
        None, description="with ray: into how many shards the work is cut"
    )

    storage: Annotated[str | None, Reach.RUN] = Field(
        None,
        min_length=1,
        description="with ray: fsspec URL that takes finished shards; else disks are shared",
    )

    @model_validator(mode="after")
    def _fits(self) -> BuildConfig:
        if self.shard is not None and self.shard[0] >= self.shard[1]:
            raise ValueError(f"--shard {self.shard[0]}/{self.shard[1]}: I counts from 0 and stays below N")
        parted = [
            name
            for name, given in (
                ("--shard", self.shard is not None),
                ("--workers", self.workers > 1),
                ("--ray", self.ray is not None),
            )
            if given
        ]
        if len(parted) > 1:
            raise ValueError(f"{' and '.join(parted)} share the work out in different ways; give one of them")
        for name, given in (("--max-tokens", self.max_tokens is not None), ("--append", self.append)):
            if parted and given:
                raise ValueError(f"{name} is for a build in one process, not with {parted[0]}")
        if self.append and self.overwrite:
            raise ValueError("--append adds to an index and --overwrite replaces it; give one of them")
        if self.ids_column is not None:
            for name, given in (
                ("--text-column", "text_column" in self.model_fields_set and self.text_column != "text"),
                ("--no-special-tokens", self.no_special_tokens),
            ):
                if given:
                    raise ValueError(f"--ids-column takes sequences as they are; {name} does not go with it")
        if self.compile and self.hooks:
            raise ValueError("--compile runs into --hooks; give one of them")
        if self.compile and self.numerics == "reproducible":
            raise ValueError("--compile writes kernels that may round differently; leave --numerics fast")
        if self.shards is not None and self.ray is None:
            raise ValueError("--shards says how --ray cuts the work; use --shard I/N with other schedulers")
        return self


def options_reaching(*reaches: Reach) -> frozenset[str]:
    """Names of the options whose values reach so far and no further."""
    fields = BuildConfig.model_fields.items()
    return frozenset(name for name, field in fields if any(reach in field.metadata for reach in reaches))
