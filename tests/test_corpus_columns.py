"""What a column may hold, where it may lie, and which files of a folder have none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from indexer.corpus import Corpus, json_stream
from indexer.errors import IndexerError


def as_parquet(path: Path, records: list[Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(records), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def as_arrow(path: Path, records: list[Any], new: Any = pa.ipc.new_file) -> Path:
    table = pa.Table.from_pylist(records)
    with new(str(path.with_suffix(".arrow")), table.schema) as file:
        file.write_table(table)
    return path.with_suffix(".arrow")


def as_lines(path: Path, records: list[Any]) -> Path:
    path.with_suffix(".jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path.with_suffix(".jsonl")


def as_array(path: Path, records: list[Any]) -> Path:
    path.with_suffix(".json").write_text(json.dumps(records))
    return path.with_suffix(".json")


FORMS: dict[str, Callable[[Path, list[Any]], Path]] = {
    "parquet": as_parquet,
    "arrow": as_arrow,
    "arrow stream": lambda path, records: as_arrow(path, records, pa.ipc.new_stream),
    "lines": as_lines,
    "array": as_array,
}


@pytest.fixture(params=FORMS)
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[list[Any]], str]:
    return lambda records: str(FORMS[request.param](tmp_path / "a", records))


def read(*sources: str, write_chat: Any = None, known: int | None = None, **options: Any) -> list[Any]:
    corpus = Corpus(sources, **options)
    corpus.write_chat, corpus.token_ids = write_chat, known
    corpus.look()
    return [
        "".join(one.pieces) if one.token_ids is None else one.token_ids.tolist() for one in corpus.documents()
    ]


Write = Callable[[list[Any]], str]


def test_a_column_within_columns(write: Write) -> None:
    path = write(
        [
            {"data": {"deep": {"text": "one"}}, "x": 1},
            {"data": {"deep": None}},
            {"data": {"deep": {"text": "two"}}},
        ]
    )
    assert read(path, text_column="data.deep.text") == ["one", "two"]
    with pytest.raises(IndexerError, match=r'no column "data.text" \(it has: data.deep, x\)'):
        read(path, text_column="data.text")
    with pytest.raises(IndexerError, match=r'column "data.deep" holds '):
        read(path, text_column="data.deep")


def test_a_column_of_that_very_name_comes_first(write: Write) -> None:
    assert read(write([{"a.b": "one", "a": {"b": "two"}}]), text_column="a.b") == ["one"]


def test_paragraphs_are_joined_by_a_blank_line(write: Write) -> None:
    path = write([{"text": ["one", "two"]}, {"text": ["three", None, ""]}, {"text": []}, {"text": None}])
    assert read(path) == ["one\n\ntwo", "three"]


def test_a_list_that_is_neither_text_nor_chat(write: Write) -> None:
    with pytest.raises(
        IndexerError, match=r'column "text" holds a list of int, not text.*token ids with --ids-column'
    ):
        read(write([{"text": [1, 2]}]))
    with pytest.raises(IndexerError, match='column "text" holds a list of object, not text'):
        read(write([{"text": [{"from": "x"}]}]))


MESSAGES = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two", "thought": "hm"}]


def test_chats_are_written_by_the_template(write: Write) -> None:
    asked: list[Any] = []

    def written(messages: Any) -> str:
        asked.append(messages)
        return "|".join(message["content"] for message in messages)

    assert read(write([{"messages": MESSAGES}]), text_column="messages", write_chat=written) == ["one|two"]
    # the fields that other messages have, which Parquet fills in, are not there
    assert asked == [MESSAGES]


def test_a_chat_that_cannot_be_written(write: Write) -> None:
    def refused(messages: Any) -> str:
        raise IndexerError("the tokenizer's chat template refuses it (no turn)")

    path = write([{"messages": MESSAGES}])
    with pytest.raises(
        IndexerError, match=r'column "messages" holds a chat, and the tokenizer\'s chat template refuses'
    ):
        read(path, text_column="messages", write_chat=refused)
    with pytest.raises(IndexerError, match="no tokenizer whose template"):
        read(path, text_column="messages")


def test_token_ids_are_taken_as_they_are(write: Write) -> None:
    path = write([{"ids": [1, 5, 2]}, {"ids": []}, {"ids": None}, {"ids": [9]}])
    assert read(path, ids_column="ids", known=10) == [[1, 5, 2], [9]]
    with pytest.raises(
        IndexerError,
        match=r'token 0 of column "ids" is 9, and the model and its tokenizer know token ids 0 to 8 alone',
    ):
        read(path, ids_column="ids", known=9)


@pytest.mark.parametrize("value", [[1, -1], [2**40], [1.5], ["a"], "text", [True], [None, 1]])
def test_what_are_no_token_ids(write: Write, value: Any) -> None:
    with pytest.raises(
        IndexerError,
        match=r"column \"ids\" (holds .*, not token ids|is -1|is 1099511627776)|token . of column",
    ):
        read(write([{"ids": value}]), ids_column="ids", known=10)


def test_token_ids_are_not_looked_for_in_texts_and_csv(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1 2 3")
    (tmp_path / "b.csv").write_text("ids\n1\n")
    for name, message in (("a.txt", "a text has no column of token ids"), ("b.csv", "not from CSV")):
        with pytest.raises(IndexerError, match=message):
            read(str(tmp_path / name), ids_column="ids")
    as_lines(tmp_path / "c", [{"ids": [7]}])
    corpus = Corpus([str(tmp_path)], ids_column="ids")
    assert [np.array(one.token_ids).tolist() for one in corpus.documents()] == [[7]]
    assert corpus.counts.no_column_skipped == 2
    assert corpus.coverage()[0].characters == 0


def test_bare_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"one"\n"two"\n{"text": "three"}\n')
    (tmp_path / "b.json").write_text('["one", "two"]')
    assert read(str(tmp_path / "a.jsonl"), str(tmp_path / "b.json")) == ["one", "two", "three", "one", "two"]
    with pytest.raises(IndexerError, match=r"a.jsonl, line 1: a JSON str, not an object with named columns"):
        read(str(tmp_path / "a.jsonl"), text_column="body")


@pytest.mark.parametrize("look_ahead", [0, 1 << 20])
@pytest.mark.parametrize("block", [1, 5, 1000])
def test_an_object_around_the_records(look_ahead: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "LOOK_AHEAD", look_ahead)
    records = [{"text": "one"}, {"text": "two", "tags": [{"text": "no"}]}]

    def found(text: str) -> list[Any]:
        blocks = (text[first : first + block] for first in range(0, len(text), block))
        return list(json_stream.values(blocks, lambda value: isinstance(value, dict) and "text" in value))

    def dumped(*values: Any) -> list[Any]:
        return found(" ".join(json.dumps(value, indent=1) for value in values))

    assert dumped({"version": [1, [2]], "empty": [], "words": ["a"], "data": records, "n": None}) == records
    assert dumped({"data": records[:1]}) == records[:1]
    # records themselves, whatever arrays they hold
    assert dumped({"text": "x", "data": records}, records[0]) == [{"text": "x", "data": records}, records[0]]
    assert dumped({"name": "x", "files": ["a", "b"]}) == [{"name": "x", "files": ["a", "b"]}]
    with pytest.raises(ValueError, match='records in "data" and in "more"'):
        dumped({"data": records, "more": records})
    with pytest.raises(ValueError, match="text after the end of the object"):
        dumped({"data": records}, records[0])
    for cut in (
        '{"data": [{"text": "one"}',
        '{"data": [{"text": "one"}]',
        '{"data": [{"text": "one"}] "n": 1}',
        '{"data"',
    ):
        with pytest.raises(ValueError, match=r"cut off|Expecting"):
            found(cut)


def test_a_record_before_which_its_own_parts_came_is_never_taken_for_what_is_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is too long to be looked at first it is refused, in words."""
    record = {"comments": [{"text": "no"}], "text": "x" * 500}
    path = as_array(tmp_path / "a", [])
    path.write_text(json.dumps(record))
    assert read(str(path)) == ["x" * 500]
    monkeypatch.setattr(json_stream, "LOOK_AHEAD", 0)
    monkeypatch.setattr("indexer.corpus.records.BLOCK_BYTES", 64)
    with pytest.raises(IndexerError, match=r'not JSON \(records in "comments" and in "text"'):
        read(str(path))


def project(folder: Path) -> Path:
    """Source code, and what lies beside it."""
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "a.py").write_text("w1 w2")
    (folder / "package.json").write_text('{"name": "x", "files": ["dist"]}')
    (folder / "tsconfig.json").write_text('{\n// comment\n"a": 1}')
    (folder / "numbers.json").write_text("[1, 2]")
    (folder / "table.csv").write_text("x,y\n1,2\n")
    as_lines(folder / "records", [{"name": "x"}])
    as_parquet(folder / "records", [{"name": "x"}])
    as_arrow(folder / "records", [{"name": "x"}])
    return folder


def test_files_of_a_folder_without_the_column_are_left_out_and_counted(tmp_path: Path) -> None:
    folder = project(tmp_path / "project")
    for source in (str(folder), f"{folder}/**"):
        corpus = Corpus([source])
        corpus.look()
        assert ["".join(one.pieces) for one in corpus.documents()] == ["w1 w2"]
        assert corpus.counts.no_column_skipped == 7
        assert [Path(entry["source"]).name for entry in corpus.digests()] == ["a.py"]
        assert corpus.counts.bytes_read == corpus.bytes
        assert "numbers.json, record 1: a JSON int" in str(corpus.without_column)
    for path in folder.iterdir():
        if path.is_file():
            with pytest.raises(IndexerError, match=r'no column "text"|not JSON|a JSON int'):
                Corpus([str(path)]).look()


def test_a_folder_of_which_nothing_has_the_column(tmp_path: Path) -> None:
    as_lines(tmp_path / "a", [{"body": "x"}])
    with pytest.raises(
        IndexerError, match=r'1 without the column: .*a.jsonl, line 1: no column "text" \(it has: body\)'
    ):
        Corpus([str(tmp_path)]).look()


def test_a_later_record_without_the_column_is_a_mistake(tmp_path: Path) -> None:
    as_lines(tmp_path / "a", [{"text": "x"}, {"body": "x"}])
    with pytest.raises(IndexerError, match=r'a.jsonl, line 2: no column "text"'):
        read(str(tmp_path))


def test_what_save_to_disk_writes(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(3000)]
    data = Dataset.from_dict({"text": texts, "n": range(3000)})
    data.save_to_disk(tmp_path / "one", num_shards=3)
    DatasetDict(train=data, test=data.select(range(5))).save_to_disk(tmp_path / "two")
    corpus = Corpus([str(tmp_path / "one")])
    assert [Path(file.path).suffix for file in corpus.files] == [".arrow"] * 3
    assert read(str(tmp_path / "one")) == texts
    assert read(str(tmp_path / "two")) == texts[:5] + texts
    assert read(f"{tmp_path}/one/*") == texts


def test_a_damaged_arrow_file(tmp_path: Path) -> None:
    for new in (pa.ipc.new_file, pa.ipc.new_stream):
        path = as_arrow(tmp_path / "a", [{"text": str(number)} for number in range(9999)], new)
        whole = path.read_bytes()
        for data in (whole[: len(whole) // 2], b"", b"no arrow file at all, and some more"):
            path.write_bytes(data)
            with pytest.raises(IndexerError, match=r"a.arrow: broken arrow data"):
                read(str(path))


@pytest.mark.parametrize("newline", ["\n", "\r", "\r\n"])
def test_lines_of_csv(newline: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(newline.join(["id,text", '1,"w1', 'w2"', "", "2,w3", "3"]).encode())
    corpus = Corpus([str(path)]).documents()
    assert [(one.row, "".join(one.pieces)) for one in (next(corpus), next(corpus))] == [
        (0, f"w1{newline}w2"),
        (1, "w3"),
    ]
    with pytest.raises(IndexerError, match=r'a.csv, line 6: 1 fields, so no column "text"'):
        next(corpus)


def test_quotes_that_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('id\ttext\n1\t"w1 w2\n2\tw3, w4\n3\tw5"\n4\t"w7" x\n')
    assert read(str(path), quoting="none") == ['"w1 w2', "w3, w4", 'w5"', '"w7" x']
    with pytest.raises(IndexerError, match=r"line 5: not CSV .*; where quotes are text, give --quoting none"):
        read(str(path))
