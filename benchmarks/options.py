"""The options of a case: the fields of a dataclass, read from the command line."""

from __future__ import annotations

import argparse
import dataclasses
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
                settings["metavar"] = "N" if settings["type"] is _count else "TEXT"
        parser.add_argument("--" + field.name.replace("_", "-"), **settings)


def read_options(kind: type[Options], parsed: argparse.Namespace) -> Options:
    """The options that were parsed."""
    return kind(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(kind)})  # type: ignore[arg-type]


def settings_of(options: Any, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """The options as plain values, but for those that say nothing of what was measured."""
    return {name: value for name, value in dataclasses.asdict(options).items() if name not in leave_out}


def _reader(hint: Any) -> Any:
    return _count if hint in (int, int | None) else str


def _count(text: str) -> int:
    number = int(text) if text.lstrip("-").isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number, 1 or more")
    return number
