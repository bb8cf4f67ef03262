"""One worker process: reads a BuildConfig as JSON from stdin, builds its shard, ends as a command does."""

from __future__ import annotations

import signal
import sys

from indexer.commands.program import tell
from indexer.config import BuildConfig
from indexer.errors import IndexerError


def main() -> int:
    """Build one shard; returns the exit status: 0 done, 2 a mistake, 130 stopped with its work kept."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    # after the signals, for the imports take a second
    from indexer.engines.shards import build_shard

    try:
        build_shard(BuildConfig.model_validate_json(sys.stdin.read()))
    except IndexerError as error:
        tell(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
