"""What a build is asked to do: the options of the `build` command, and what reads them."""

from __future__ import annotations

from indexer.config.build import BuildConfig, Reach, options_reaching

__all__ = ["BuildConfig", "Reach", "options_reaching"]
