"""The options of `build` as its help tells them. One not given is None, so a config file's value holds."""

from __future__ import annotations

from typing import Any

import typer

_MODEL = "What to index"
_KEEP = "What to keep of each unit"
_CORPUS = "How the corpus is read"
_RUN = "How it is run"
_SHARE = "Long builds and many machines"


def _option(panel: str, name: str, metavar: str, help: str, default: str = "", short: str = "") -> Any:
    text = _plain(help) + (f" [dim]Default: {default}.[/dim]" if default else "")
    names = (name, short) if short else (name,)
    return typer.Option(*names, help=text, show_default=False, metavar=metavar, rich_help_panel=panel)


def _argument(name: str, help: str) -> Any:
    return typer.Argument(metavar=name, help=_plain(help), show_default=False)


def _plain(text: str) -> str:
    """Text whose brackets are not taken for markup."""
    return text.replace("[", r"\[")


MODEL = _argument("MODEL", "Local folder or hub name; safetensors weights.")
CORPUS = _argument(
    "CORPUS...",
    "Files, globs, folders: text, .jsonl, .json, .csv, .tsv (also .gz, .bz2, .xz, .zst), .parquet, .arrow; "
    "hf://datasets/OWNER/NAME[/CONFIGURATION or /FILE][:SPLIT]. UTF-8; UTF-16 by its mark.",
)
OUTPUT = _option(_MODEL, "--output", "DIR", "Folder to write the index to.", short="-o")
CONFIG = _option(
    _MODEL,
    "--config",
    "FILE.toml",
    "The options as TOML keys (max_tokens = 1000); the command line overrides them.",
)
OVERWRITE = _option(_MODEL, "--overwrite", "", "Replace an index that is already there.")
SITES = _option(_MODEL, "--sites", "LIST", "Kinds of place, as mlp: the neurons of the MLPs.", "mlp")
LAYERS = _option(_MODEL, "--layers", "LIST", "As 0-5,7.", "all")
REVISION = _option(_MODEL, "--revision", "NAME", "Branch, tag or commit of a hub model.")
OUTPUT_PROJECTION = _option(
    _MODEL,
    "--output-projection",
    "PATTERN",
    "Where MLPs are not recognised: their output projection, * for the layer, as h.*.mlp.c_proj.",
)
TOP = _option(_KEEP, "--top", "K", "Strongest examples of each unit; 0 keeps none.", "20")
BOTTOM = _option(_KEEP, "--bottom", "K", "Lowest examples of each unit; 0 keeps none.", "20")
BY = _option(
    _KEEP,
    "--by",
    "WHAT",
    "What competes for a place: each sequence or document with its extreme, or every token.",
    "sequence",
)
WINDOW = _option(_KEEP, "--window", "B,A", "Tokens kept before and after a peak.", "48,15")
CONTEXT = _option(_CORPUS, "--context", "N", "Tokens of a sequence, special ones included.", "256")
MAX_TOKENS = _option(
    _CORPUS, "--max-tokens", "N", "Stop after this many counted tokens, as 5000, 1e6 or 10M.", "all"
)
SHARE = _option(
    _CORPUS,
    "--share",
    "PART",
    "A fair part of the documents, chosen by hash, as 0.1 for a tenth; also with shards and --append.",
    "1",
)
SEED = _option(_CORPUS, "--seed", "N", "Another number, another part.", "0")
TEXT_COLUMN = _option(
    _CORPUS,
    "--text-column",
    "NAME",
    "The column of texts, lists of paragraphs, or chats (role and content); a.b is b within a.",
    "text",
)
IDS_COLUMN = _option(
    _CORPUS,
    "--ids-column",
    "NAME",
    "A column of token ids instead, run as they are: nothing is put around them.",
)
ON_BAD_TEXT = _option(
    _CORPUS, "--on-bad-text", "WHAT", "About invalid UTF-8: error, replace or skip.", "error"
)
QUOTING = _option(
    _CORPUS, "--quoting", "HOW", "Of CSV and TSV: standard, or none where quotes are text.", "standard"
)
NO_SPECIAL_TOKENS = _option(
    _CORPUS,
    "--no-special-tokens",
    "",
    "Leave out the BOS, CLS, SEP that the tokenizer puts around a sequence.",
)
COUNT_SPECIAL_TOKENS = _option(
    _CORPUS, "--count-special-tokens", "", "Let BOS, CLS, SEP and their like enter the statistics."
)
BATCH_TOKENS = _option(_RUN, "--batch-tokens", "N", "Tokens in a batch.", "4096, or what fits the GPU")
PADDING = _option(
    _RUN,
    "--padding",
    "WHAT",
    "never: batches of one length, without padding; auto does so where the model needs it.",
    "auto",
)
DTYPE = _option(_RUN, "--dtype", "TYPE", "The model's: auto, float32, bfloat16 or float16.", "auto")
DEVICE = _option(
    _RUN,
    "--device",
    "NAME",
    "Where the model runs: auto, cpu, cuda, cuda:N, or spread over all GPUs.",
    "auto",
)
ATTENTION = _option(
    _RUN,
    "--attention",
    "NAME",
    "Instead of what config.json names: sdpa, eager, flex_attention, flash_attention_2 or _3.",
    "auto",
)
KERNELS = _option(_RUN, "--kernels", "NAME", "The statistics: auto, cpp, triton or reference.", "auto")
HOOKS = _option(_RUN, "--hooks", "", "Read activations by hooks even where fusing is possible.")
COMPILE = _option(_RUN, "--compile", "", "Let torch.compile fuse what stands around the MLPs.")
THREADS = _option(_RUN, "--threads", "N", "Processor threads.", "all cores")
NUMERICS = _option(
    _RUN,
    "--numerics",
    "HOW",
    "fast, or reproducible: batches of fixed shapes, so that no choice of batches or shards moves a bit.",
    "fast",
)
APPEND = _option(_SHARE, "--append", "", "Add the corpus to the finished index at --output.")
SHARD = _option(
    _SHARE, "--shard", "I/N", "Build shard I of N alone, I from 0, for `merge`; as a Slurm array does."
)
WORKERS = _option(_SHARE, "--workers", "N", "Processes on this machine, a GPU each where there are any.", "1")
RAY = _option(_SHARE, "--ray", "[ADDRESS]", "Share the work out on a Ray cluster; local starts one here.")
SHARDS = _option(_SHARE, "--shards", "N", "With --ray: into how many shards.", "4 for each worker")
STORAGE = _option(
    _SHARE,
    "--storage",
    "URL",
    "With --ray and no shared disk: where finished shards go, as s3://bucket/folder (fsspec).",
    "beside --output",
)
CHECKPOINT_MINUTES = _option(
    _SHARE, "--checkpoint-minutes", "N", "Minutes between checkpoints; rarer where they take long.", "5"
)
PIECE_BYTES = _option(
    _SHARE, "--piece-bytes", "N", "Size of the corpus's pieces, which make shards, as 64MB.", "67108864"
)
