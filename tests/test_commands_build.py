"""What `build` makes of options and config files, and what it says of mistakes in them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

import indexer
from indexer.commands import app
from indexer.config.build import BuildConfig
from indexer.config.quantities import whole_number
from indexer.errors import IndexerError

MINIMUM = ["build", "model", "texts", "--output", "my.index"]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[BuildConfig]:
    """The configurations that a build was asked for; none is run."""
    asked: list[BuildConfig] = []
    module = ModuleType("indexer.engines")
    module.build = lambda config: asked.append(config) or config.output  # type: ignore[attr-defined, func-returns-value]
    monkeypatch.setitem(sys.modules, "indexer.engines", module)
    return asked


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), prog_name="neuron-indexer")
    return result.exit_code, result.stdout, result.stderr


def test_defaults_are_the_configs(built: list[BuildConfig]) -> None:
    assert run(*MINIMUM) == (0, "my.index\n", "")
    assert built == [BuildConfig(model="model", corpus=("texts",), output=Path("my.index"))]
    assert built[0].model_fields_set == {"model", "corpus", "output"}


def test_every_option_arrives(built: list[BuildConfig]) -> None:
    options = (
        "--sites mlp --layers 0-5,7 --top 3 --bottom 4 --samples 5 --panel 6 --by token --distinct "
        "--context 128 --bos no --window 8,2 --max-tokens 1000 --share 0.25 --seed 3 "
        "--batch-tokens 512 --padding never --dtype float32 --device cpu --kernels reference "
        "--text-column body --target-column side --quoting none --attention eager --count-special-tokens "
        "--on-bad-text skip --output-projection h.*.mlp --revision main --adapter lora --hooks --threads 2 "
        "--overwrite --numerics reproducible --checkpoint-minutes 1.5 --piece-bytes 1000 "
        "--sae one=a.b --sae two --sae-units 5-9"
    )
    assert run(*MINIMUM[:2], "a.txt", "b/*.txt", "-o", "my.index", *options.split())[0] == 0
    assert built == [
        BuildConfig(
            model="model", corpus=("a.txt", "b/*.txt"), output=Path("my.index"), sites=("mlp",),
            layers="0-5,7", top=3, bottom=4, samples=5, panel=6, by="token", distinct=True, context=128,
            bos="no", window=(8, 2), max_tokens=1000, share=0.25, seed=3, batch_tokens=512, padding="never",
            dtype="float32", device="cpu", kernels="reference", text_column="body", target_column="side",
            count_special_tokens=True, on_bad_text="skip", quoting="none", output_projection="h.*.mlp",
            revision="main", adapter="lora", hooks=True, threads=2, attention="eager", overwrite=True,
            numerics="reproducible", checkpoint_minutes=1.5, piece_bytes=1000,
            sae=("one=a.b", "two"), sae_units=(5, 9),
        )
    ]  # fmt: skip
    other = {
        *("append", "shard", "workers", "ray", "shards", "storage", "compile", "ids_column"),
        "no_special_tokens",
    }
    assert set(built[0].model_fields_set) == set(BuildConfig.model_fields) - other


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ("--append", {"append": True}),
        ("--shard 3/64", {"shard": (3, 64)}),
        ("--compile", {"compile": True}),
        ("--workers 2", {"workers": 2}),
        ("--ray", {"ray": "auto"}),
        ("--ray local --shards 8", {"ray": "local", "shards": 8}),
        ("--ray 10.0.0.1:6379 --storage s3://bucket/x", {"ray": "10.0.0.1:6379", "storage": "s3://bucket/x"}),
    ],
)
def test_options_beside_those(built: list[BuildConfig], options: str, fields: dict[str, Any]) -> None:
    assert run("build", *options.split(), "model", "texts", "-o", "my.index")[0] == 0
    assert built == [BuildConfig(model="model", corpus=("texts",), output=Path("my.index"), **fields)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--shard 4/4", "--shard 4/4: I counts from 0 and stays below N"),
        ("--shard 4", "--shard"),
        ("--shard 0/4 --workers 2", "--shard and --workers share the work out in different ways"),
        ("--workers 2 --max-tokens 10", "--max-tokens is for a build in one process"),
        ("--ray local --append", "--append is for a build in one process"),
        ("--append --overwrite", "--append adds to an index and --overwrite replaces it"),
        ("--distinct --by document", "--distinct with --by document would depend on the order of the corpus"),
        ("--compile --hooks", "--compile runs into --hooks"),
        ("--compile --numerics reproducible", "--compile writes kernels that may round differently"),
        ("--shards 4", "--shards says how --ray cuts the work"),
        ("--checkpoint-minutes -1", "--checkpoint-minutes"),
        ("--numerics exact", "--numerics"),
    ],
)
def test_options_that_do_not_fit(built: list[BuildConfig], options: str, said: str) -> None:
    status, out, err = run("build", "model", "texts", "-o", "my.index", *options.split())
    assert (status, out, built) == (2, "", [])
    assert said in err
    assert err.count("\n") == 1


def test_the_help_tells_the_configs_defaults() -> None:
    told = " ".join(run("build", "--help")[1].replace("│", " ").split())
    for name, field in BuildConfig.model_fields.items():
        assert name.replace("_", "-") in told.lower(), name
        default = field.default
        if isinstance(default, str | int | float) and not isinstance(default, bool):
            written = str(default).removesuffix(".0")
            assert f"{str(field.description).partition(' ')[2]} Default: {written}." in told, name
    assert "before and after a peak. Default: 48,15; of features 24,7." in told
    assert "Processor threads. Default: all cores." in told
    assert "Undefined" not in told


def test_config_file_and_options_over_it(built: list[BuildConfig], tmp_path: Path) -> None:
    config = tmp_path / "build.toml"
    config.write_text(
        'model = "m"\ncorpus = ["t"]\noutput = "a.index"\ntop = 7\nwindow = [3, 4]\nhooks = true\n'
    )
    assert run("build", "--config", str(config))[0] == 0
    assert run("build", "other", "--config", str(config), "--top", "9", "-o", "b.index")[0] == 0
    assert built[0] == BuildConfig(
        model="m", corpus=("t",), output=Path("a.index"), top=7, window=(3, 4), hooks=True
    )
    assert built[1] == built[0].model_copy(update={"model": "other", "top": 9, "output": Path("b.index")})


MISTAKES = [
    (["build"], "error: MODEL is missing: give it on the command line or as `model` in --config FILE.toml"),
    (["build", "model", "--output", "x"], "error: CORPUS is missing"),
    (["build", "model", "texts"], "error: --output is missing"),
    ([*MINIMUM, "--top", "-1"], "error: --top: should be greater than or equal to 0, not -1"),
    (
        [*MINIMUM, "--top", "many"],
        "error: --top: should be a whole number, as 1000, 2k, 1e6 or 10M, not many",
    ),
    (
        [*MINIMUM, "--max-tokens", "1.5"],
        "error: --max-tokens: should be a whole number, as 1000, 2k, 1e6 or 10M, not 1.5",
    ),
    ([*MINIMUM, "--max-tokens", "0"], "error: --max-tokens: should be greater than or equal to 1, not 0"),
    (
        [*MINIMUM, "--top", "-1", "--bottom", "few"],
        "error: --top: should be greater than or equal to 0, not -1; --bottom: should be a whole number, as",
    ),
    (
        [*MINIMUM, "--piece-bytes", "64 apples"],
        "error: --piece-bytes: should be a whole number, as 1000000, 64MB or 64MiB, not 64 apples",
    ),
    ([*MINIMUM, "--by", "word"], "error: --by: should be 'sequence', 'token' or 'document', not word"),
    ([*MINIMUM, "--quoting", "all"], "error: --quoting: should be 'standard' or 'none', not all"),
    (
        [*MINIMUM, "--on-bad-text", "ignore"],
        "error: --on-bad-text: should be 'error', 'replace' or 'skip', not ignore",
    ),
    ([*MINIMUM, "--batch-tokens", "0"], "error: --batch-tokens: should be greater than or equal to 1, not 0"),
    (
        [*MINIMUM, "--window", "48"],
        "error: --window: should be tokens before and after the peak, as 48,15, not 48",
    ),
    ([*MINIMUM, "--window", "-1,3"], "error: --window: should be greater than or equal to 0, not -1"),
    (
        [*MINIMUM, "--dtype", "int8"],
        "error: --dtype: should be 'auto', 'float32', 'bfloat16' or 'float16', not int8",
    ),
    ([*MINIMUM[:-1], "/"], "error: --output: should name a folder to be made, not /"),
    ([*MINIMUM, "--top", "1e9"], "error: --top: should be less than or equal to 1000000, not 1000000000"),
    ([*MINIMUM, "--layers", "0", "--layers=1"], "error: --layers is given 2 times; give it once"),
    ([*MINIMUM, "-o", "other"], "error: --output is given 2 times; give it once"),
    ([*MINIMUM, "--layers", ""], "error: --layers: string should have at least 1 character, not ''"),
    ([*MINIMUM, "--threads", "100000"], "error: --threads: should be less than or equal to 1024, not 100000"),
    ([*MINIMUM, "--tpo", "3"], "error: No such option: --tpo"),
    ([*MINIMUM, "--config", "missing.toml"], "error: config file missing.toml: No such file or directory"),
    (["biuld"], "error: No such command 'biuld'"),
    (["top", "my.index"], "error: Missing argument 'UNIT'. See neuron-indexer top --help"),
    (["top", "my.index", "mlp.0.0", "-k", "0"], "error: -k 0: give a whole number, 1 or more"),
    (
        ["top", "my.index", "mlp.0.0", "--format", "xml"],
        "error: Invalid value for '--format' / '-f': 'xml' is not one of 'table', 'json', 'csv'",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "told"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES]
)
def test_a_mistake_is_one_line(built: list[BuildConfig], arguments: list[str], told: str) -> None:
    status, out, error = run(*arguments)
    assert (status, out) == (2, "")
    assert error.startswith(told)
    assert error.count("\n") == 1
    assert not built


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("top = ", "not TOML: Invalid value"),
        ("topp = 3", "no such key: topp; did you mean top?"),
        ('by = "word"', "--by: should be 'sequence', 'token' or 'document', not word"),
        ("[build]\ntop = 3", "no such key: build"),
        ("\ufeffwindow = [3]", "--window: field required, not [3]"),
        ('window = "3"', "--window: should be tokens before and after the peak, as 48,15, not 3"),
        ("layers = [0.5]", "--layers: should be numbers of layers, from 0 on, as [0, 5], or text, as 0-5,7"),
        ("max_tokens = true", "--max-tokens: should be a whole number, as 1000, 2k, 1e6 or 10M, not True"),
        ('text_column = "\udcff"', "not UTF-8 at byte 15"),
    ],
)
def test_a_mistake_in_the_config_file_names_it(tmp_path: Path, text: str, told: str) -> None:
    config = tmp_path / "build.toml"
    config.write_bytes(text.encode(errors="surrogateescape"))
    status, _, error = run(*MINIMUM, "--config", str(config))
    assert status == 2
    assert error.startswith(f"error: config file {config}")
    assert told in error
    assert error.count("\n") == 1


def raising(error: BaseException) -> Callable[[Any], None]:
    def build(_: Any) -> None:
        raise error

    return build


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (IndexerError("corpus file a\nb\x1b[2J: broken"), 2, "error: corpus file a b\\x1b[2J: broken\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            OSError(28, "No space left on device", "my.index"),
            2,
            "error: [Errno 28] No space left on device: 'my.index'\n",
        ),
        (MemoryError(), 2, "error: out of memory\n"),
        (
            ZeroDivisionError("oh"),
            1,
            "error: a fault of this program, please report it: ZeroDivisionError: oh",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_no_error_is_a_traceback(
    built: list[BuildConfig], monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, told: str
) -> None:
    monkeypatch.setattr(sys.modules["indexer.engines"], "build", raising(error))
    code, out, said = run(*MINIMUM)
    assert (code, out) == (status, "")
    assert said.startswith(told)
    assert said.count("\n") == 1


def test_from_python(built: list[BuildConfig]) -> None:
    assert indexer.build(model="m", corpus=["t"], output="my.index", top=3) == Path("my.index")
    assert built[0].top == 3
    with pytest.raises(IndexerError, match="no such option: topp; did you mean top"):
        indexer.build(model="m", corpus=["t"], output="my.index", topp=3)
    with pytest.raises(IndexerError, match=r"^CORPUS: should name files, folders or data sets, not \[\]$"):
        indexer.build(model="m", corpus=[], output="my.index")
    with pytest.raises(IndexerError, match="--output is missing"):
        indexer.build(model="m", corpus=["t"])


@pytest.mark.parametrize(
    ("written", "number"),
    [("1e6", 10**6), ("10M", 10**7), ("1_000_000", 10**6), ("2k", 2000), ("1.5M", 1_500_000), ("1B", 10**9),
     (1e6, 10**6), (7, 7)],
)  # fmt: skip
def test_counts_as_people_write_them(
    built: list[BuildConfig], tmp_path: Path, written: str | float, number: int
) -> None:
    names = ("max_tokens", "batch_tokens", "context")
    indexer.build(model="m", corpus=["t"], output="x", **dict.fromkeys(names, written))
    command = [part for name in names for part in (f"--{name.replace('_', '-')}", str(written))]
    assert run(*MINIMUM, *command)[0] == 0
    config = tmp_path / "build.toml"
    config.write_text("".join(f"{name} = {written!r}\n" for name in names))
    assert run(*MINIMUM, "--config", str(config))[0] == 0
    assert [[getattr(one, name) for name in names] for one in built] == [[number] * 3] * 3


@pytest.mark.parametrize(
    ("written", "number"), [("64MB", 64_000_000), ("64MiB", 64 << 20), ("1.5 GB", 1_500_000_000), ("7b", 7)]
)
def test_bytes_as_people_write_them(built: list[BuildConfig], written: str, number: int) -> None:
    assert run(*MINIMUM, "--piece-bytes", written)[0] == 0
    assert built[0].piece_bytes == number


@pytest.mark.parametrize("number", ["1e19", "9223372036854775808"])
def test_a_number_that_no_array_holds(built: list[BuildConfig], number: str) -> None:
    status, _, told = run(*MINIMUM, "--max-tokens", number)
    assert (status, built) == (2, [])
    assert f"--max-tokens: should be at most 9223372036854775807, not {number}" in told


def test_no_number_is_rounded() -> None:
    for text in ("1.5", "1e-1", "1.0000000000000000000000000001", "1__0", "nan", "inf", ""):
        assert whole_number(text) is None, text
    assert whole_number("9" * 30) == 10**30 - 1
    for value in (1.5, float("nan"), float("inf"), True, None, [1]):
        assert whole_number(value) is None, value


@pytest.mark.parametrize(
    ("given", "layers"), [([6, 5], "5-6"), (5, "5"), (range(3), "0-2"), ((0, 2), "0,2"), ("0-5,7", "0-5,7")]
)
def test_layers_from_python(built: list[BuildConfig], given: Any, layers: str) -> None:
    indexer.build(model="m", corpus=["t"], output="x", layers=given)
    assert built[0].layers == layers


@pytest.mark.parametrize("given", [[], -1, [0, -1], ["first"], True, 0.5, [[1]]])
def test_layers_that_are_none(built: list[BuildConfig], given: Any) -> None:
    with pytest.raises(IndexerError, match=r"--layers: should be numbers of layers.*, not ") as error:
        indexer.build(model="m", corpus=["t"], output="x", layers=given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", ["c.jsonl", Path("c.jsonl"), ["c.jsonl"], (Path("c.jsonl"),)])
def test_one_source_is_a_corpus(built: list[BuildConfig], given: Any) -> None:
    indexer.build(model="m", corpus=given, output="x")
    assert built[0].corpus == ("c.jsonl",)


def test_paths_from_python_are_paths(built: list[BuildConfig]) -> None:
    indexer.build(model=Path("m"), corpus=[Path("t.txt")], output="x")
    assert (built[0].model, built[0].corpus) == ("m", ("t.txt",))
