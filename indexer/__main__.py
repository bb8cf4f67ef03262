"""`python -m indexer` is the command `neuron-indexer`."""

from __future__ import annotations

from indexer.commands import main

if __name__ == "__main__":
    main()
