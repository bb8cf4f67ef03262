"""The one kind of error a user can cause."""

from __future__ import annotations


class IndexerError(Exception):
    """A mistake in what was asked for, told in one line: what, where, the value, the way out.

    The command line prints it to stderr and exits with status 2; library callers catch it.
    """
