"""The options of a case: the fields of a dataclass, read from the command line."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

Options = TypeVar("Options")


def option(default: Any, help: str, *, quick: Any = None, choices: tuple[str, ...] | None = None) -> Any:
    """A field of a case's options. quick: the default with --quick, where it differs."""
    return dataclasses.field(default=default, metadata={"help": help, "quick": quick, "choices": choices})


def add_options(parser: argparse.ArgumentParser, kind: type[Any], quick: bool) -> None:
    """Add --NAME for every field of `kind`; numbers must be 1 or more."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        value = field.metadata["quick"] if quick and field.metadata["quick"] is not None else field.default
        settings: dict[str, Any] = {"default": value, "help": field.metadata["help"]}
        if value not in (None, True, False):
            settings["help"] += f" [{value}]"
        if hints[field.name] is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings["type"] = _reader(hints[field.name])
            settings["choices"] = field.metadata["choices"]
            if settings["choices"] is None:
                settings["metavar"] = "DIR" if settings["type"] is Path else "N"
        parser.add_argument("--" + field.name.replace("_", "-"), **settings)


def read_options(kind: type[Options], parsed: argparse.Namespace) -> Options:
    """The options that were parsed."""
    return kind(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(kind)})  # type: ignore[arg-type]


def settings_of(options: Any) -> dict[str, Any]:
    """The options as plain values, paths left out: they say nothing of what was measured."""
    return {name: value for name, value in dataclasses.asdict(options).items() if not isinstance(value, Path)}


def _reader(hint: Any) -> Any:
    if hint in (int, int | None):
        return _count
    if hint in (Path, Path | None):
        return Path
    return str


def _count(text: str) -> int:
    number = int(text) if text.lstrip("-").isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number, 1 or more")
    return number
