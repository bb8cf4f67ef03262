"""A model's tokenizer: what tokenizer.json makes, and nothing that a library makes of it.

For many models transformers takes the vocabulary alone from tokenizer.json and builds all else anew, as the
model's type has it; the tokens may then be others than those the model was trained on. Here the file is taken
whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from indexer.errors import IndexerError
from indexer.models.source import Source, blamed_on, read_json
from indexer.tokens.encode import tokens_around

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
VOCABULARIES = (FILE, "vocab*", "*.model")
# settings of tokenizer_config.json that change tokens: the kind of step in tokenizer.json, and its field
_ASKED = {
    "do_lower_case": ("BertNormalizer", "lowercase"),
    "strip_accents": ("BertNormalizer", "strip_accents"),
    "tokenize_chinese_chars": ("BertNormalizer", "handle_chinese_chars"),
    "add_prefix_space": ("ByteLevel", "add_prefix_space"),
}
# classes that put BOS and EOS around a text as their settings say, in every version of transformers
_SETTLES_ENDS = re.compile(r"(Code)?(Llama|Gemma|Cohere)\w*Tokenizer(Fast)?")


def load_tokenizer(source: Source, config: Any) -> Any:
    """The fast tokenizer of a model: that of tokenizer.json, else what transformers makes of its vocabulary.

    Settings that tokenizer_config.json names are followed: special tokens, those of `_ASKED`, and whether BOS
    and EOS are added where it names a class of `_SETTLES_ENDS`.
    Raises IndexerError where there is none, none that has a fast form, or where the two files contradict each
    other about BOS and EOS, which versions of transformers then settle differently.
    """
    # without a vocabulary some versions of transformers make up an empty tokenizer
    if source.gguf and not (source.folder / FILE).is_file():
        return _made_of(source, config, [])
    vocabularies = [path for pattern in VOCABULARIES for path in sorted(source.folder.glob(pattern))]
    if not vocabularies:
        raise IndexerError(
            f"model {source.name}: no {FILE} in {source.folder}, nor a vocabulary in any other form; "
            "save the model's tokenizer there with save_pretrained"
        )
    if (source.folder / FILE).is_file():
        with blamed_on(source, "its tokenizer cannot be loaded"):
            tokenizer = _as_in_file(source)
        _settle_ends(source, tokenizer)
        return tokenizer
    return _made_of(source, config, vocabularies)


def _as_in_file(source: Source) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        source.folder, trust_remote_code=False, local_files_only=True
    )
    backend = tokenizer.backend_tokenizer
    settings = read_json(source.name, source.folder / SETTINGS, {})
    for part in ("normalizer", "pre_tokenizer"):
        current = getattr(backend, part)
        if current is None:
            continue
        steps = json.loads(current.__getstate__())
        if _follow(settings, steps):
            current.__setstate__(json.dumps(steps).encode())
            setattr(backend, part, current)
    # an unknown word is text; files from before transformers 5 leave it to the class to say which token it is
    unknown = getattr(backend.model, "unk_token", None)
    # some vocabularies name one that they do not have
    named = unknown is not None and backend.token_to_id(unknown) is not None
    if tokenizer.unk_token is None and named:
        tokenizer.unk_token = unknown
    return tokenizer


def _settle_ends(source: Source, tokenizer: Any) -> None:
    """Have BOS and EOS put around a text as settings say. IndexerError where they and the file contradict
    each other and no class says which of them holds."""
    settings = read_json(source.name, source.folder / SETTINGS, {})
    ends, differs = {}, False
    for role, adds in _ends_of(tokenizer).items():
        token, asked = getattr(tokenizer, f"{role}_token"), settings.get(f"add_{role}_token")
        ends[role] = asked if token is not None and isinstance(asked, bool) else adds
        if ends[role] == adds:
            continue
        if _SETTLES_ENDS.fullmatch(str(settings.get("tokenizer_class"))) is None:
            raise IndexerError(
                f"model {source.name}: {SETTINGS} sets add_{role}_token to {str(asked).lower()}, but {FILE} "
                f"{'adds' if adds else 'does not add'} {token}; change the setting, in a copy of the model, "
                "to what it was trained with"
            )
        differs = True
    if differs:
        _put_around(tokenizer, ends)


def settle_as_asked(source: Source, tokenizer: Any, asked: Mapping[str, int | None]) -> None:
    """Have the tokens of these ids put around a text as "bos" and "eos", None being none.

    Raises IndexerError where the tokenizer has others for them.
    """
    adds = _ends_of(tokenizer)
    for role, token_id in asked.items():
        has = getattr(tokenizer, f"{role}_token_id")
        if token_id not in (None, has):
            raise IndexerError(
                f"model {source.name}: its file has token {token_id} as {role.upper()}, and the installed "
                f"transformers reads {has}; take a newer one, or put the model's {FILE} beside the file"
            )
    ends = {**adds, **{role: token_id is not None for role, token_id in asked.items()}}
    if ends != adds:
        _put_around(tokenizer, ends)


def _ends_of(tokenizer: Any) -> dict[str, bool]:
    """Whether "bos" and "eos" are put around a text."""
    before, after = (ids.tolist() for ids in tokens_around(tokenizer.backend_tokenizer))
    return {
        role: getattr(tokenizer, f"{role}_token") is not None
        and end == [getattr(tokenizer, f"{role}_token_id")]
        for role, end in (("bos", before[:1]), ("eos", after[-1:]))
    }


def _put_around(tokenizer: Any, ends: dict[str, bool]) -> None:
    from tokenizers.processors import TemplateProcessing

    around = {
        role: [(getattr(tokenizer, f"{role}_token"), getattr(tokenizer, f"{role}_token_id"))] if added else []
        for role, added in ends.items()
    }
    before, after = ([token for token, _ in around[role]] for role in ("bos", "eos"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B", *after],
        special_tokens=[*around["bos"], *around["eos"]],
    )


def _follow(settings: dict[str, Any], steps: dict[str, Any]) -> bool:
    """Set in a tokenizer's steps what settings name; whether anything was to be changed."""
    changed = False
    for setting, (kind, field) in _ASKED.items():
        for step in _nested(steps):
            if setting in settings and step.get("type") == kind and step[field] != settings[setting]:
                step[field], changed = settings[setting], True
    return changed


def _nested(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield step
    for inner in (*step.get("normalizers", ()), *step.get("pretokenizers", ())):
        yield from _nested(inner)


def _made_of(source: Source, config: Any, vocabularies: list[Path]) -> Any:
    from transformers import AutoTokenizer

    pieces = [path.name for path in vocabularies if path.suffix == ".model"]
    if pieces and "tiktoken" not in pieces[0] and find_spec("sentencepiece") is None:
        raise IndexerError(
            f"model {source.name}: no {FILE} in {source.folder}, only {pieces[0]}, which takes the package "
            "sentencepiece to read: pip install sentencepiece protobuf"
        )
    with blamed_on(source, "its tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(
            source.folder, config=config, trust_remote_code=False, local_files_only=True, **source.gguf_file
        )
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise IndexerError(f"model {source.name}: its tokenizer {kind} has no fast form ({FILE})")
    return tokenizer
