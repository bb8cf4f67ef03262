"""The program `neuron-indexer`, and `python -m indexer`, which is the same."""

from __future__ import annotations

import sys


def main() -> None:
    """Load the command line and run it; Ctrl-C while it is loaded ends as it does later."""
    try:
        from indexer.commands import main as run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
