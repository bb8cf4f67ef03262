"""How the program ends: 0 done, 2 a mistake told in one line, 130 interrupted; never a traceback."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from indexer.errors import IndexerError
from indexer.talk import tell

NAME = "neuron-indexer"
_TRACEBACK = "NEURON_INDEXER_TRACEBACK"
# what Ray takes for the address of a cluster
_ADDRESS = re.compile(r"auto|local|(ray://)?[\w.\[\]-]+:\d+")

# the class above every complaint of the option parser; typer gives it no public name
_OptionError: Any = typer.BadParameter.__base__


class _NoPandas:
    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


@contextmanager
def without_pandas() -> Iterator[None]:
    """Let Arrow, which is imported within, find no pandas where a question needs none.

    Arrow imports it to ask whether a value comes from there, which takes longer than most questions. Where a
    table is to become a DataFrame it looks again.
    """
    sys.meta_path.insert(0, _NoPandas)
    try:
        yield
        import pyarrow

        # it looks for pandas once, with the first value
        pyarrow.array([0])
    finally:
        sys.meta_path.remove(_NoPandas)


class Commands(TyperGroup):
    """A group of commands of which none ends in a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a reader of stdout that went away (`| head`) ends it quietly."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # what is still buffered would fail again when the interpreter closes stdout
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does; an option whose value may be left out gets the one it then stands for."""
        _refuse_repeated(args, self._names(ctx, args))
        return list(super().parse_args(ctx, _with_address(args)))

    def _names(self, ctx: Any, args: list[str]) -> dict[str, str]:
        """Every spelling of the options of the command that is given, with its first spelling.

        That of one that may be given again is empty.
        """
        command = self.get_command(ctx, next((argument for argument in args if argument[:1] != "-"), ""))
        options = command.get_params(ctx) if command else []
        return {
            name: "" if getattr(option, "multiple", False) else option.opts[0]
            for option in options
            for name in option.opts
        }

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run a command line and leave with its exit status."""
        options["standalone_mode"] = False
        sys.exit(_status(lambda: super(Commands, self).main(*arguments, **options)))


def _refuse_repeated(arguments: list[str], names: dict[str, str]) -> None:
    """Of two values for one option the parser would take the last, without a word."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    spelled = [argument.split("=")[0] for argument in options if argument.startswith("-")]
    given = [names.get(option, option) for option in spelled if option in names or option.startswith("--")]
    for option in filter(None, given):
        if given.count(option) > 1:
            raise IndexerError(f"{option} is given {given.count(option)} times; give it once")


def _with_address(arguments: list[str]) -> list[str]:
    """`--ray` without an address is `--ray auto`: the cluster that this machine belongs to."""
    whole: list[str] = []
    for place, argument in enumerate(arguments):
        following = arguments[place + 1] if place + 1 < len(arguments) else ""
        bare = argument == "--ray" and not _ADDRESS.fullmatch(following)
        whole.append("--ray=auto" if bare else argument)
    return whole


def _status(run: Callable[[], Any]) -> int:
    try:
        status = run()
    except IndexerError as error:
        return _fail(str(error))
    except _OptionError as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else NAME
        # pydantic's words, which typer passes on as they are
        message = error.format_message().rstrip(".").replace("Value error, ", "")
        return _fail(f"{message}. See {command} --help")
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except (OSError, MemoryError) as error:
        return _fail(f"{error}" if str(error) else "out of memory")
    except Exception as error:
        if _TRACEBACK in os.environ:
            raise
        message = f"{type(error).__name__}: {error}"
        return _fail(f"a fault of this program, please report it: {message} ({_TRACEBACK}=1 shows where)", 1)
    if status == 130:
        tell("interrupted")
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int = 2) -> int:
    from indexer.index.harmless import one_line

    tell(f"error: {one_line(message)}")
    return status
