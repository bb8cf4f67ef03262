"""The options of the command `build`: the fields of BuildConfig, loaded when they are asked for."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperOption


class BuildCommand(TyperCommand):
    """A command with an option for each field of BuildConfig beside those of its function.

    The function finds them in the context, and one that is not given as None: a config file may tell it.
    """

    @cached_property
    def _options(self) -> list[Any]:
        from indexer.config.build import BuildConfig

        return [_option(name, field) for name, field in BuildConfig.model_fields.items()]

    def get_params(self, ctx: Any) -> list[Any]:
        """All options, in the order of --help: --config stands after MODEL, CORPUS and --output."""
        return [*self._options[:3], *super().get_params(ctx), *self._options[3:]]

    def invoke(self, ctx: Any) -> Any:
        """Call the function with its own option alone."""
        return ctx.invoke(self.callback, config=ctx.params.pop("config"))


def _option(name: str, field: Any) -> Any:
    """What the command line has for a field of BuildConfig: an argument where its name is in capitals."""
    from indexer.config.options import option_name

    told, spelled = field.json_schema_extra, option_name(name)
    default = told["otherwise"] or _written(field.get_default())
    # what stands in brackets is not markup
    help = field.description.replace("[", r"\[") + (f" [dim]Default: {default}.[/dim]" if default else "")
    common: Any = {"help": help, "metavar": told["metavar"] or None, "show_default": False}
    if spelled.isupper():
        return TyperArgument(param_decls=[name], nargs=-1 if name == "corpus" else 1, **common)
    return TyperOption(
        param_decls=[name, spelled, *told["short"]],
        is_flag=field.annotation is bool,
        multiple=name == "sae",
        rich_help_panel=told["panel"],
        **common,
    )


def _written(default: Any) -> str:
    """A default as the command line takes it; empty for a switch, and where there is none."""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    if isinstance(default, int | float) and not isinstance(default, bool):
        # no .0 behind a whole number
        return str(int(default) if default == int(default) else default)
    return default if isinstance(default, str) else ""
