"""The command `serve`: indexes and a model behind an address of this machine."""

from __future__ import annotations

import re
import socket
import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Timer

from indexer.errors import MODELS, IndexerError, check_installed
from indexer.index.read import Index, open_index
from indexer.talk import tell


def run(paths: Sequence[Path], model: str | None, port: int, browser: bool) -> None:
    """Answer on 127.0.0.1 until the program is stopped.

    model: see web.live.Model; without it no text can be run, and of several indexes for those alone that were
    made of it. It is loaded once, and again for an index that was built with other options of loading.
    port: 0 for one that is free.
    Raises IndexerError for an index or a model that cannot be opened, and for a port that is taken.
    """
    check_installed("serving an index", "fastapi", "uvicorn", *(MODELS if model else ()))
    import uvicorn

    from indexer.web.answers import Answers
    from indexer.web.server import application, new_token, several

    with ExitStack() as opened:
        listening = opened.enter_context(_listening(port))
        indexes = {name: opened.enter_context(open_index(path)) for name, path in names(paths).items()}
        lives = _lives(indexes, model) if model is not None else {}
        token, alone = new_token(), len(indexes) == 1
        apps = {
            name: application(
                Answers(index), token, lives.get(name), {} if alone else indexes, "" if alone else name
            )
            for name, index in indexes.items()
        }
        app = next(iter(apps.values())) if alone else several(apps)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        print(f"{address}?token={token}", flush=True)
        tell("Ctrl-C stops it")
        if browser:
            # when it has begun to answer
            Timer(0.5, webbrowser.open, [f"{address}?token={token}"]).start()
        settings = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
        uvicorn.Server(settings).run(sockets=[listening])


def names(paths: Sequence[Path]) -> dict[str, Path]:
    """Of each index the name in its address: that of its folder, made plain, numbered where it is taken."""
    found: dict[str, Path] = {}
    for path in paths:
        folder = path.resolve().name.removesuffix(".index")
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", folder).strip("-") or "index"
        number = next(number for number in range(1, len(paths) + 2) if _numbered(plain, number) not in found)
        found[_numbered(plain, number)] = path
    return found


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _lives(indexes: dict[str, Index], model: str) -> dict[str, object]:
    """Of each index that was made of the model what runs texts; raises IndexerError where none was."""
    from indexer.web.live import Live, Model

    found: dict[str, object] = {}
    refusals = []
    loaded: list[Model] = []
    tell(f"loading {model}")
    for name, index in indexes.items():
        try:
            loaded.append(Model.of(index, model, loaded))
            found[name] = Live(index, loaded[-1])
        except IndexerError as error:
            refusals.append(error)
    if not found:
        raise refusals[0]
    return found


def _listening(port: int) -> socket.socket:
    # asyncio sends small answers at once only where the protocol is named
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(("127.0.0.1", port))
        # from now on whoever asks waits for the answer
        found.listen()
    except OSError as error:
        found.close()
        raise IndexerError(f"--port {port}: {error.strerror}; take another, or 0 for a free one") from None
    return found
