"""From options and a TOML file to a checked BuildConfig, or to one line that says what is wrong."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from indexer.config.build import BuildConfig
from indexer.errors import IndexerError


def read_config_file(path: Path) -> dict[str, Any]:
    """The keys of a TOML file of BuildConfig's fields. Raises IndexerError naming file, line or key."""
    try:
        options = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise IndexerError(f"config file {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise IndexerError(f"config file {path}: not UTF-8 at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise IndexerError(f"config file {path}: not TOML: {error}") from error
    for key in options:
        if key not in BuildConfig.model_fields:
            raise IndexerError(f"config file {path}: no such key: {key}{_nearest(key)}")
    return options


def build_config(options: Mapping[str, Any], config_file: Path | None = None) -> BuildConfig:
    """A BuildConfig of `options`, and of the config file's keys where an option is not given.

    Raises IndexerError naming the first option at fault, its value and what is allowed.
    """
    from_file = read_config_file(config_file) if config_file else {}
    try:
        return BuildConfig(**(from_file | dict(options)))
    except ValidationError as error:
        source = dict.fromkeys(from_file.keys() - options.keys(), f"config file {config_file}, ")
        raise IndexerError(_one_line(error, source)) from error


def _one_line(error: ValidationError, source: Mapping[str, str]) -> str:
    faults: dict[str, list[Any]] = {}
    for fault in error.errors(include_url=False):
        faults.setdefault(str(fault["loc"][0]) if fault["loc"] else "", []).append(fault)
    return "; ".join(_fault_line(key, found, source.get(key, "")) for key, found in faults.items())


def _fault_line(key: str, faults: list[Any], source: str) -> str:
    """What is wrong with one option; source: where it comes from, for the front of the line."""
    first, *others = faults
    if not key:
        # options that do not go together: the message names them
        return str(first["msg"]).removeprefix("Value error, ")
    where = f"{source}{option_name(key)}"
    if first["type"] == "missing" and len(first["loc"]) == 1:
        line = f"{where} is missing: give it on the command line or as `{key}` in --config FILE.toml"
    elif first["type"] == "extra_forbidden":
        line = f"no such option: {key}{_nearest(key)}"
    else:
        line = f"{where}: {_lower(first['msg'])}, not {_shown(first['input'])}"
    return f"{line} (and {len(others)} more like it)" if others else line


def option_name(key: str) -> str:
    """What a field of BuildConfig is called on the command line."""
    return key.upper() if key in ("model", "corpus") else f"--{key.replace('_', '-')}"


def _shown(value: Any) -> str:
    text = str(value) if isinstance(value, Path) else value
    return text if isinstance(text, str) and text.strip() else repr(value)


def _lower(message: str) -> str:
    message = message.removeprefix("Input ").removeprefix("Value error, ").replace("valid tuple", "list")
    return message[:1].lower() + message[1:]


def _nearest(key: str) -> str:
    near = difflib.get_close_matches(key, BuildConfig.model_fields, n=1)
    return f"; did you mean {near[0]}?" if near else f" (there are: {', '.join(BuildConfig.model_fields)})"
