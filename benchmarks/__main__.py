"""`python -m benchmarks` lists the cases; `python -m benchmarks CASE [--json] [--quick] [options]` runs one.

Exit status: 0 with figures, 1 where a result was wrong and there are none, 2 for a mistake in the request.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from benchmarks.options import add_options, read_options
from benchmarks.record import record
from benchmarks.report import WrongResultError, say
from indexer.errors import IndexerError

# A case is the module of its name: a dataclass `Options`, and `run(options) -> Report`.
CASES = {
    "overhead": "the whole build against the bare forward pass, and against two algorithms in use elsewhere",
    "update": "ns per element and GB/s of every kernel and instruction set, against a plain memory read",
    "counts": "what is counted of a real model's activations: every kernel against torch's functions",
    "query": "p50 and p95 of a unit's record, a token search and a table scan, on a large synthetic index",
    "compile": "registers, spills and instructions per element of the GPU kernels, without a GPU",
    "gpu": "the fused kernels and whole models on a GPU, part by part; benchmarks/on_gpu.sh runs all",
    "merge": "peak memory and time of merging many partial indexes, against a plain read of them",
    "scale": "a plan for a trillion tokens: checkpoints, failures, storage and merge, by simulation",
    "workers": "several processes with a core each against one, a whole build",
    "architectures": "every model type that takes text, made small: indexed right, wrong, or refused",
    "survive": "builds killed at random moments and at every named point, then repeated: all equal",
    "memory": "peak memory of a build over a corpus, and over one ten times as large",
    "panel": "what the panel costs: filling it beside the pass, its size, and a layer's matrix",
    "samples": "what fair samples cost: in the pass, in the index, in memory",
    "experts": "a pass over routed experts against transformers' own forward, on OLMoE's shape",
    "features": "a pass over features of a dictionary against encoding alone, and against re-encoding",
    "features_memory": "peak memory of a build of features, over that of their states and weights",
    "web": "the pages: a unit's JSON and its page after a click, a text that is typed, a static site",
    "trained": "a small dictionary trained on MiniLM: how clean its features are beside neurons",
    "plot": "pictures of the records in benchmarks/results",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        width = 1 + max(map(len, CASES))
        for name, line in CASES.items():
            print(f"{name:{width}}{line}")
        say("\nrun one: python -m benchmarks CASE [--json] [--quick] [options]; its options: CASE --help")
        return 0
    case, *rest = given
    if case not in CASES:
        say(f"error: no case {case!r}; choose one of: {', '.join(CASES)}")
        return 2
    return _run(case, rest)


def _run(case: str, arguments: list[str]) -> int:
    module = importlib.import_module(f"benchmarks.{case}")
    parser = argparse.ArgumentParser(
        f"python -m benchmarks {case}", description=CASES[case], allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, no tables")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, not how fast")
    add_options(parser, module.Options, quick="--quick" in arguments)
    parsed = parser.parse_args(arguments)
    try:
        report = module.run(read_options(module.Options, parsed))
    except WrongResultError as wrong:
        say(f"{case}: no figures, for a result is wrong: {wrong}")
        return 1
    except IndexerError as error:
        say(f"error: {error}")
        return 2
    if parsed.json:
        print(report.to_json(case, record()))
    else:
        report.print(record())
    return 0


if __name__ == "__main__":
    sys.exit(main())
