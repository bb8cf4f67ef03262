"""`python -m indexer` is the command `neuron-indexer`."""

from indexer.commands import main

if __name__ == "__main__":
    main()
