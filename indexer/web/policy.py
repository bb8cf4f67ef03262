"""What the pages may do in a browser: nothing of other hosts, nothing inline, nothing made of text."""

from __future__ import annotations


def policy(framed: str | None = "'none'") -> str:
    """The Content-Security-Policy. framed: who may show a page within another; None where it is not said."""
    parts = [
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:",
        "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "require-trusted-types-for 'script'",
    ]  # fmt: skip
    return "; ".join([*parts, *([] if framed is None else [f"frame-ancestors {framed}"])])
