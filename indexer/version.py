"""The version of this program, and of the packages that it works with."""

from __future__ import annotations

from collections.abc import Iterable

__version__ = "0.1.0"


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The version of each package, None of one that is not installed."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    # imported here: it takes longer than most questions to an index
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
