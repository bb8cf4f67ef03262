"""Sites: the kinds of place in a model whose values are indexed. Each finds its probes in a loaded model.

docs/add-a-site.md says how one is added.
"""

from __future__ import annotations

from indexer.sites.asked import Asked
from indexer.sites.found import SITES, check_sites, find, with_dictionaries

__all__ = ["SITES", "Asked", "check_sites", "find", "with_dictionaries"]
