"""The command line: each command parses, calls one function and prints. Data to stdout, talk to stderr.

Nothing heavy is imported before a command needs it, so that help is there at once.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from indexer.building.signals import end_as_by_ctrl_c
from indexer.commands.build_options import BuildCommand
from indexer.commands.program import NAME, Commands, without_pandas
from indexer.errors import IndexerError
from indexer.talk import tell
from indexer.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa

    from indexer.index.read import Index


class Format(StrEnum):
    """How data is printed: for people, or exact for programs."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def _examples(*lines: str) -> str:
    return "\n".join(["[bold]Examples[/bold]", *(f"  {NAME} {line}".replace("[", r"\[") for line in lines)])


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="What makes each neuron of a language model fire: one pass over a corpus, then questions in SQL.",
    epilog=_examples(
        "build ./model texts/ --output my.index",
        "unit my.index mlp.5.1733",
        'sql my.index "SELECT layer, unit, maximum FROM units ORDER BY maximum DESC LIMIT 5"',
        "demo",
    ),
)


def main() -> None:
    """The program `neuron-indexer`."""
    # a program that was started with its output closed has None in its place
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - closed with the program
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # where bars and guillemets cannot be encoded, their escapes are better than a traceback
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # plugins of pydantic are searched for in all packages, which takes longer than most questions
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    end_as_by_ctrl_c()
    app(prog_name=NAME)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{NAME} {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def program(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Without a command, print the help."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    cls=BuildCommand,
    epilog=_examples(
        "build ./model texts/*.txt more.jsonl.gz --output my.index",
        "build openai-community/gpt2 hf://datasets/OWNER/NAME --max-tokens 1000000 -o gpt2.index",
        "build --config build.toml --overwrite",
        "build ./model texts/ -o my.index --shard $SLURM_ARRAY_TASK_ID/64",
        "build ./model more/ -o my.index --append",
    )
)
def build(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="The options as TOML keys (max_tokens = 1000); the command line overrides them.",
            rich_help_panel="What to index",
        ),
    ] = None,
) -> None:
    """Run a model over a corpus and write the index of its neurons.

    Stopped at any moment, the same command continues where it was.
    """
    from indexer.config.options import build_config

    given = {name: value for name, value in context.params.items() if value is not None and value != ()}
    checked = build_config(given, config)

    from indexer.engines import build as run

    print(run(checked))


INDEX = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of a finished index.")]
UNIT = Annotated[
    str,
    typer.Argument(
        metavar="UNIT",
        help="Site, layer, unit: mlp.5.1733; or 5/1733, or as TransformerLens or transformers name it.",
    ),
]
FORMAT = Annotated[Format, typer.Option("--format", "-f", help="For people, or exact for programs.")]


def _count(option: str) -> Any:
    """A parser of whole numbers from 1 on that names option and value, which typer's own does not."""

    def parse(text: str) -> int:
        from indexer.config.quantities import whole_number

        number = whole_number(text)
        if number is None or number < 1:
            raise IndexerError(f"{option} {text}: give a whole number, 1 or more")
        return number

    return parse


FULL = Annotated[bool, typer.Option("--full", help="Whole windows, not one line cut to fit.")]
PLACES = Annotated[int, typer.Option("-k", parser=_count("-k"), metavar="K", help="How many examples.")]
OF_A_BAND = Annotated[
    int | None, typer.Option("-k", parser=_count("-k"), metavar="K", help="How many of each band.")
]
QUERY = Annotated[str, typer.Argument(metavar="QUERY", help="A SELECT; - reads it from stdin.")]
PICTURE = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Draw it into a .png, .svg or .pdf file."),
]
ROWS = Annotated[
    int, typer.Option("--rows", parser=_count("--rows"), metavar="N", help="Most rows of a table for people.")
]
FINE = Annotated[bool, typer.Option("--fine", help="All 8 bins of an octave, not one bar an octave.")]
LINEAR = Annotated[bool, typer.Option("--linear", help="Counts on a linear scale.")]
DEEP = Annotated[bool, typer.Option("--full", help="Also read every row and check the laws between them.")]
LOCATION = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the index goes.")]
TOKENS = Annotated[
    int, typer.Option("--max-tokens", parser=_count("--max-tokens"), metavar="N", help="Tokens to index.")
]
ANEW = Annotated[bool, typer.Option("--overwrite", help="Build it anew if it is there.")]


@app.command(epilog=_examples("top my.index mlp.5.1733", "top my.index mlp.5.1733 -k 3 --full --format json"))
def top(index: INDEX, unit: UNIT, k: PLACES = 10, full: FULL = False, form: FORMAT = Format.TABLE) -> None:
    """Show the examples on which a unit fires most strongly."""
    _print_examples("top", index, unit, k, full, form)


@app.command(epilog=_examples("bottom my.index mlp.5.1733 -k 5"))
def bottom(index: INDEX, unit: UNIT, k: PLACES = 10, full: FULL = False, form: FORMAT = Format.TABLE) -> None:
    """Show the examples on which a unit's activation is lowest."""
    _print_examples("bottom", index, unit, k, full, form)


@app.command(
    epilog=_examples("sample my.index mlp.5.1733", "sample my.index mlp.5.1733 -k 1 --full --format json")
)
def sample(
    index: INDEX, unit: UNIT, k: OF_A_BAND = None, full: FULL = False, form: FORMAT = Format.TABLE
) -> None:
    """Show fair examples of a unit: of each octave of its sequences' maxima some, chosen by hash."""
    _print_examples("samples", index, unit, k, full, form)


def _print_examples(name: str, path: Path, unit: str, k: int | None, full: bool, form: Format) -> None:
    from indexer.display import pages

    with _open(path) as index:
        table = getattr(index, name)(unit, k=k)
        if not getattr(index.keep(unit), name):
            tell(f"index {path} has none: it was built with --{name} 0")
        if form is not Format.TABLE:
            _write(table, form)
            return
        out = pages.console()
        pages.print_title(f"{unit}  {name} {table.num_rows}", out)
        examples = _rows(table)
        pages.print_examples(examples, pages.sources(index, examples), out, full)


@app.command(
    epilog=_examples("histogram my.index mlp.5.1733", "histogram my.index mlp.5.1733 --output neuron.svg")
)
def histogram(
    index: INDEX,
    unit: UNIT,
    output: PICTURE = None,
    fine: FINE = False,
    linear: LINEAR = False,
    form: FORMAT = Format.TABLE,
) -> None:
    """Show how a unit's activations are distributed over all counted tokens."""
    with _open(index) as opened:
        table = opened.histogram(unit)
        if output is not None:
            from indexer.display.plot import plot_histogram

            plot_histogram(unit, _rows(opened.unit(unit))[0], _rows(table), output, linear)
            tell(f"wrote {output}")
        elif form is not Format.TABLE:
            _write(table, form)
        else:
            from indexer.display import pages
            from indexer.display.histogram import print_bars

            out = pages.console()
            pages.print_title(f"{unit}  histogram", out)
            print_bars(_rows(table), out, fine, linear)


@app.command(epilog=_examples("unit my.index mlp.5.1733", "unit my.index mlp.5.1733 --format json"))
def unit(
    index: INDEX,
    unit: UNIT,
    k: PLACES = 5,
    form: FORMAT = Format.TABLE,
) -> None:
    """Show one unit on one screen: counts, moments, quantiles, histogram, examples, a sample of each band.

    As JSON one object with all of it; as CSV the row of its numbers.
    """
    from indexer.display import pages
    from indexer.display.data import json_text

    with _open(index) as opened:
        if form is Format.CSV:
            _write(opened.unit(unit), form)
            return
        record = opened.record(unit, k=k)
        numbers, bins = _rows(record.statistics)[0], _rows(record.histogram)
        numbers |= {} if record.head is None else _rows(record.head)[0]
        examples = {name: _rows(getattr(record, name)) for name in ("top", "samples", "bottom")}
        if form is Format.JSON:
            print(json_text(numbers | {"histogram": bins} | examples))
            return
        examples["samples"] = [sample for sample in examples["samples"] if sample["rank"] == 1]
        sources = pages.sources(opened, [example for rows in examples.values() for example in rows])
        pages.print_card(unit, numbers, bins, examples, sources, pages.console())


@app.command(
    epilog=_examples(
        'sql my.index "SELECT * FROM units WHERE kurtosis > 100 ORDER BY kurtosis DESC LIMIT 5"',
        "sql my.index \"SELECT unit_name(site, layer, unit), value FROM examples WHERE token = 'if'\" -f csv",
        "sql my.index - < question.sql",
    )
)
def sql(
    index: INDEX,
    query: QUERY,
    rows: ROWS = 200,
    form: FORMAT = Format.TABLE,
) -> None:
    """Ask a question in SQL (DuckDB): views units, examples, histograms, documents."""
    with _open(index) as opened:
        table = opened.sql(sys.stdin.read() if query == "-" else query)
    if form is not Format.TABLE:
        _write(table, form)
        return
    from indexer.display.data import print_table

    print_table(table.slice(0, min(rows, table.num_rows)), sys.stdout, tell)
    if table.num_rows > rows:
        tell(f"{rows:,} of {table.num_rows:,} rows shown (--rows N for more, --format csv for all)")


@app.command(
    epilog=_examples(
        "merge my.index.shards/*.index --output my.index", "merge my.index.shards --output my.index"
    )
)
def merge(
    parts: Annotated[
        list[Path],
        typer.Argument(metavar="INDEX...", help="Indexes of shards of one corpus, or folders of them."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the index goes.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an index that is already there.")
    ] = False,
) -> None:
    """Merge the indexes of shards into one: what a single build over all of them gives."""
    from indexer.engines import merge as run

    print(run(parts, output, overwrite=overwrite))


@app.command(epilog=_examples("info my.index", "info my.index --format json"))
def info(index: INDEX, form: FORMAT = Format.TABLE) -> None:
    """Show what an index holds and how it was made; of an unfinished one, how far it is."""
    from indexer.index.unfinished import progress_of

    unfinished = progress_of(index)
    if unfinished is not None:
        _print_facts(unfinished, form)
        return
    with _open(index) as opened:
        facts = opened.info()
        if form is Format.TABLE:
            from indexer.display import pages

            facts["experts"] = pages.loads(facts["experts"])
        _print_facts(facts, form)


@app.command(epilog=_examples("verify my.index", "verify my.index --full"))
def verify(index: INDEX, full: DEEP = False, form: FORMAT = Format.TABLE) -> None:
    """Check an index: its manifest's own digest, files, sizes, SHA-256, schemas, and that none is foreign."""
    with _open(index) as opened:
        _print_facts(opened.verify(full=full), form)


@app.command(
    epilog=_examples(
        "serve my.index", "serve my.index --model ./model", "serve one.index two.index --no-browser"
    )
)
def serve(
    indexes: Annotated[list[Path], typer.Argument(metavar="INDEX...", help="Folders of finished indexes.")],
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model of the index, to run texts of your own through it."),
    ] = None,
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Of this machine; 0 for a free one.")
    ] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the pages in the browser.")
    ] = True,
) -> None:
    """Look at indexes in a browser: a page for every unit; with --model, texts that you edit and watch."""
    from indexer.web.serve import run

    run(indexes, model, port, browser)


@app.command(epilog=_examples("site my.index --output pages"))
def site(
    index: INDEX,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the pages go.")],
) -> None:
    """Write the pages of an index as a folder, for any web server or bucket that answers ranges of bytes."""
    from indexer.web.site import write_site

    print(write_site(index, output))


@app.command(epilog=_examples("demo", "demo --max-tokens 1000000 --output /tmp/minilm.index"))
def demo(
    output: LOCATION = Path("demo/minilm.index"), max_tokens: TOKENS = 320_000, overwrite: ANEW = False
) -> None:
    """Index all neurons of MiniLM over Python's own documentation and source, then look at some of them."""
    from indexer.commands.demo import run_demo

    run_demo(output, max_tokens, overwrite)


def _open(path: Path) -> Index:
    with without_pandas():
        from indexer.index.read import open_index
    return open_index(path)


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    from indexer.display.data import rows

    return list(rows(table))


def _write(table: pa.Table, form: Format) -> None:
    from indexer.display.data import write_csv, write_json

    (write_json if form is Format.JSON else write_csv)(table, sys.stdout)


def _print_facts(facts: dict[str, Any], form: Format) -> None:
    from indexer.display import data, pages

    if form is Format.TABLE:
        pages.print_facts(facts, pages.console())
    elif form is Format.JSON:
        print(data.json_text(facts))
    else:
        data.write_facts_csv(facts, sys.stdout)
