"""One worker process: reads a BuildConfig as JSON from stdin, builds its shard, ends as a command does."""

from __future__ import annotations

import sys

from indexer.building.signals import end_as_by_ctrl_c
from indexer.config.build import BuildConfig
from indexer.errors import IndexerError


def main() -> int:
    """Build one shard; returns the exit status: 0 done, 2 a mistake, 130 stopped with its work kept."""
    end_as_by_ctrl_c()
    # after the signals, for the imports take a second
    from indexer.engines.shards import build_shard

    try:
        build_shard(BuildConfig.model_validate_json(sys.stdin.read()))
    except IndexerError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
