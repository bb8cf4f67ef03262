"""The command `serve`: an index and its model behind an address of this machine."""

from __future__ import annotations

import socket
import webbrowser
from pathlib import Path
from threading import Timer

from indexer.errors import MODELS, IndexerError, check_installed
from indexer.index.read import open_index
from indexer.talk import tell


def run(path: Path, model: str | None, port: int, browser: bool) -> None:
    """Answer on 127.0.0.1 until the program is stopped.

    model: see web.live.Live; without it no text can be run. port: 0 for one that is free.
    Raises IndexerError for an index or a model that cannot be opened, and for a port that is taken.
    """
    check_installed("serving an index", "fastapi", "uvicorn", *(MODELS if model else ()))
    import uvicorn

    from indexer.web.answers import Answers
    from indexer.web.server import application, new_token

    with open_index(path) as index, _listening(port) as listening:
        live = None
        if model is not None:
            from indexer.web.live import Live

            tell(f"loading {model}")
            live = Live(index, model)
        token = new_token()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        app = application(Answers(index), token, live)
        print(f"{address}?token={token}", flush=True)
        tell("Ctrl-C stops it")
        if browser:
            # when it has begun to answer
            Timer(0.5, webbrowser.open, [f"{address}?token={token}"]).start()
        settings = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
        uvicorn.Server(settings).run(sockets=[listening])


def _listening(port: int) -> socket.socket:
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(("127.0.0.1", port))
    except OSError as error:
        found.close()
        raise IndexerError(f"--port {port}: {error.strerror}; take another, or 0 for a free one") from None
    return found
