"""What a build is asked to do: every option of the `build` command, checked once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from indexer.config.quantities import BYTES, COUNTS, whole_number
from indexer.names import MLP, format_layers

# what the arrays of a build hold
LARGEST = 2**63 - 1
# tokens before and after a peak, of units and of features, which are many
WINDOW, FEATURE_WINDOW = (48, 15), (24, 7)
# tokens of a sequence
CONTEXT = 256


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


def _dictionaries(value: object) -> object:
    """One is as good as a list of it."""
    return (value,) if isinstance(value, str | Path) else value


def _units(value: object) -> object:
    """FIRST-LAST as two numbers."""
    return value if not isinstance(value, str) else tuple(value.split("-"))


def _ascending(value: tuple[int, int] | None) -> tuple[int, int] | None:
    if value is not None and value[0] > value[1]:
        raise ValueError("should be the first and the last one, as 0-65535")
    return value


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
Context = Annotated[int, Field(ge=3), _as_written]
Seed = Annotated[int, Field(ge=0), _as_written]
Fraction = Annotated[float, Field(gt=0, le=1)]
Minutes = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
Sources = Annotated[tuple[Source, ...], BeforeValidator(_sources)]
Output = Annotated[Path, AfterValidator(_output)]
Sites = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_sites)]
Dictionaries = Annotated[tuple[Source, ...], BeforeValidator(_dictionaries)]
Units = Annotated[
    tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] | None,
    BeforeValidator(_units),
    AfterValidator(_ascending),
]
Layers = Annotated[Text | None, BeforeValidator(_layers)]
Window = Annotated[tuple[Places, Places] | None, BeforeValidator(_window)]
Shard = Annotated[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]], BeforeValidator(_shard)]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]


class Reach(StrEnum):
    """How far the value of an option reaches.

    ROWS: it decides the rows of the whole index. RUN: it says where and how a build runs, and may change when
    a build is continued; or what it leads to, as the model's digest and dtype, is compared in its place.
    PART: a build keeps it to its end, but the parts of one index may differ in it.
    """

    ROWS = "rows"
    RUN = "run"
    PART = "part"


def _option(
    panel: str,
    default: Any,
    metavar: str,
    help: str,
    reach: Reach = Reach.ROWS,
    otherwise: str = "",
    short: Sequence[str] = (),
) -> Any:
    """A field of BuildConfig, with what --help says of it, and how far its value reaches.

    panel: the heading that it stands under. metavar: what stands for its value; empty for a switch.
    otherwise: what holds where it is not given, if `default` does not say. short: its one-letter names.
    """
    told: Any = {"panel": panel, "metavar": metavar, "otherwise": otherwise, "short": short, "reach": reach}
    return Field(default, description=help, json_schema_extra=told)


_model = partial(_option, "What to index")
_keep = partial(_option, "What to keep of each unit")
_corpus = partial(_option, "How the corpus is read")
_run = partial(_option, "How it is run")
_share = partial(_option, "Long builds and many machines")


class BuildConfig(BaseModel):
    """Everything that decides what a build computes and where it puts it; stored whole in the manifest.

    Every field is an option of `build`, in the order of its --help, and a key of its config file.
    Raises pydantic.ValidationError for unknown keys and for values out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Source = _model(..., "MODEL", "Local folder or hub name; safetensors weights.", Reach.RUN)
    corpus: Sources = _corpus(
        ...,
        "CORPUS...",
        "Files, globs, folders: text, .jsonl, .json, .csv, .tsv (also .gz, .bz2, .xz, .zst), .parquet, "
        ".arrow; hf://datasets/OWNER/NAME[/CONFIGURATION or /FILE][:SPLIT]. UTF-8; UTF-16 by its mark.",
        Reach.RUN,
    )
    output: Output = _model(..., "DIR", "Folder to write the index to.", Reach.RUN, short=["-o"])
    overwrite: bool = _model(False, "", "Replace an index that is already there.", Reach.RUN)
    sites: Sites = _model(
        (MLP,),
        "LIST",
        "Kinds of place, as mlp,attn: mlp (neurons), experts (those of routed experts), attn (input channels "
        "of attention's output projection), heads (norms of what heads write), resid (the residual stream "
        "after each block), sae (features, see --sae); of a model with an encoder and a decoder of both, or "
        "of one, as encoder.mlp.",
        Reach.RUN,
    )
    sae: Dictionaries = _model(
        (),
        "SOURCE[=NAME]",
        "A sparse dictionary (SAE, transcoder), whose features are units of sae.NAME, beside --sites; with "
        "--sites sae alone. A folder, or hf://OWNER/NAME/PATH; can be repeated. Of features that are never "
        "negative no lowest examples are kept.",
        Reach.RUN,
        "none",
    )
    sae_units: Units = _model(None, "A-B", "A part of each dictionary's features.", otherwise="all")
    layers: Layers = _model(None, "LIST", "As 0-5,7; in every stack.", Reach.RUN, "all")
    revision: str | None = _model(None, "NAME", "Branch, tag or commit of a hub model.", Reach.RUN)
    adapter: Source | None = _model(
        None, "DIR", "Adapter that peft has saved, merged into the model's weights first.", Reach.RUN
    )
    output_projection: str | None = _model(
        None,
        "PATTERN",
        "Where MLPs are not recognised: their output projection, * for the layer, as h.*.mlp.c_proj.",
    )
    top: Places = _keep(20, "K", "Strongest examples of each unit; 0 keeps none.")
    bottom: Places = _keep(20, "K", "Lowest examples of each unit; 0 keeps none.")
    samples: Places = _keep(
        2, "S", "Fair examples, by hash, of each of the six highest octaves and of the rest; 0 keeps none."
    )
    by: Literal["sequence", "token", "document"] = _keep(
        "sequence",
        "WHAT",
        "What competes for a place: each sequence or document with its extreme, or every token.",
    )
    distinct: bool = _keep(
        False, "", "Of strongest or lowest examples with the same eight tokens up to the peak keep the best."
    )
    window: Window = _keep(
        None, "B,A", "Tokens kept before and after a peak.", otherwise="48,15; of features 24,7"
    )
    panel: Places = _keep(
        64, "W", "Windows of 64 tokens, by hash, on which every unit's activations are kept; 0 keeps none."
    )
    context: Context | None = _corpus(
        None,
        "N",
        "Tokens of a sequence, special ones included.",
        otherwise=f"{CONTEXT}, or what the dictionaries of --sae were trained with",
    )
    bos: Literal["auto", "tokenizer", "yes", "no"] = _corpus(
        "auto",
        "WHAT",
        "BOS before a sequence: yes, no, tokenizer: as that puts it, or auto: as the dictionaries of --sae "
        "were trained, else as the tokenizer puts it.",
    )
    max_tokens: Count | None = _corpus(
        None, "N", "Stop after this many counted tokens, as 5000, 1e6 or 10M.", otherwise="all"
    )
    share: Fraction = _corpus(
        1.0,
        "PART",
        "A fair part of the documents, chosen by hash, as 0.1 for a tenth; also with shards and --append.",
    )
    seed: Seed = _corpus(0, "N", "Another number, another choice of what is chosen by hash.")
    text_column: str = _corpus(
        "text",
        "NAME",
        "The column of texts, lists of paragraphs, or chats (role and content); a.b is b within a.",
    )
    ids_column: Text | None = _corpus(
        None, "NAME", "A column of token ids instead, run as they are: nothing is put around them."
    )
    target_column: Text | None = _corpus(
        None,
        "NAME",
        "For a model with an encoder and a decoder: the column that the decoder reads, as in training.",
        otherwise="the same text",
    )
    on_bad_text: Literal["error", "replace", "skip"] = _corpus(
        "error", "WHAT", "About invalid UTF-8: error, replace or skip."
    )
    quoting: Literal["standard", "none"] = _corpus(
        "standard", "HOW", "Of CSV and TSV: standard, or none where quotes are text."
    )
    no_special_tokens: bool = _corpus(
        False, "", "Leave out the BOS, CLS, SEP that the tokenizer puts around a sequence."
    )
    count_special_tokens: bool = _corpus(False, "", "Let BOS, CLS, SEP and their like enter the statistics.")
    batch_tokens: Count | None = _run(
        None, "N", "Tokens in a batch.", Reach.PART, "4096, or what fits the GPU"
    )
    padding: Literal["auto", "never"] = _run(
        "auto",
        "WHAT",
        "never: batches of one length, without padding; auto does so where the model needs it.",
        Reach.RUN,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _run(
        "auto", "TYPE", "The model's: auto, float32, bfloat16 or float16.", Reach.RUN
    )
    device: str = _run(
        "auto", "NAME", "Where the model runs: auto, cpu, cuda, cuda:N, or spread over all GPUs.", Reach.RUN
    )
    attention: Attention = _run(
        "auto",
        "NAME",
        "Instead of what config.json names: sdpa, eager, flex_attention, flash_attention_2 or _3.",
        Reach.RUN,
    )
    kernels: Literal["auto", "cpp", "triton", "reference"] = _run(
        "auto", "NAME", "The statistics: auto, cpp, triton or reference.", Reach.RUN
    )
    hooks: bool = _run(False, "", "Read activations by hooks even where fusing is possible.")
    compile: bool = _run(False, "", "Let torch.compile fuse what stands around the MLPs.")
    threads: Processors | None = _run(None, "N", "Processor threads.", Reach.RUN, "all cores")
    numerics: Literal["fast", "reproducible"] = _run(
        "fast",
        "HOW",
        "fast, or reproducible: batches of fixed shapes, so that no choice of batches or shards moves a bit.",
    )
    append: bool = _share(False, "", "Add the corpus to the finished index at --output.", Reach.RUN)
    shard: Shard | None = _share(
        None, "I/N", "Build shard I of N alone, I from 0, for `merge`; as a Slurm array does.", Reach.PART
    )
    workers: Processors = _share(
        1, "N", "Processes on this machine, a GPU each where there are any.", Reach.RUN
    )
    ray: str | None = _share(
        None, "[ADDRESS]", "Share the work out on a Ray cluster; local starts one here.", Reach.RUN
    )
    shards: Count | None = _share(
        None, "N", "With --ray: into how many shards.", Reach.RUN, "4 for each worker"
    )
    storage: Text | None = _share(
        None,
        "URL",
        "With --ray and no shared disk: where finished shards go, as s3://bucket/folder (fsspec).",
        Reach.RUN,
        "beside --output",
    )
    checkpoint_minutes: Minutes = _share(
        5.0, "N", "Minutes between checkpoints; rarer where they take long.", Reach.RUN
    )
    piece_bytes: Bytes = _share(
        64 << 20, "N", "Size of the corpus's pieces, which make shards, as 64MB.", Reach.PART
    )

    @property
    def sequence_tokens(self) -> int:
        """Tokens of a sequence at most."""
        return self.context or CONTEXT

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
        if self.distinct and self.by == "document":
            raise ValueError(
                "--distinct with --by document would depend on the order of the corpus; "
                "use --by sequence or --by token"
            )
        if self.append and self.overwrite:
            raise ValueError("--append adds to an index and --overwrite replaces it; give one of them")
        if self.ids_column is not None:
            for name, given in (
                ("--text-column", "text_column" in self.model_fields_set and self.text_column != "text"),
                ("--no-special-tokens", self.no_special_tokens),
                ("--bos", self.bos in ("yes", "no")),
            ):
                if given:
                    raise ValueError(f"--ids-column takes sequences as they are; {name} does not go with it")
        if self.no_special_tokens and self.bos == "yes":
            raise ValueError("--bos yes puts a BOS that --no-special-tokens leaves out; give one of them")
        if self.compile and self.hooks:
            raise ValueError("--compile runs into --hooks; give one of them")
        if self.compile and self.numerics == "reproducible":
            raise ValueError("--compile writes kernels that may round differently; leave --numerics fast")
        if self.shards is not None and self.ray is None:
            raise ValueError("--shards says how --ray cuts the work; use --shard I/N with other schedulers")
        return self


def options_reaching(*reaches: Reach) -> frozenset[str]:
    """Names of the options whose values reach so far and no further."""
    fields: Any = BuildConfig.model_fields
    return frozenset(name for name, field in fields.items() if field.json_schema_extra["reach"] in reaches)
