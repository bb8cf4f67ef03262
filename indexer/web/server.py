"""The pages and what they ask, over HTTP on this machine.

Whoever opens a page of another site in the same browser must not reach the index: requests have to name this
machine as their host, and come from a page of ours where they say where they come from. What runs code - the
model over a text, SQL - also needs the token that the address had when the program printed it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, TypeGuard

from fastapi import Body, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from indexer.display.data import json_bytes
from indexer.errors import IndexerError
from indexer.index.read import Index
from indexer.web.answers import MOST_ROWS, Answers
from indexer.web.moved import Moved
from indexer.web.policy import policy
from indexer.web.questions import Questions

LOCAL = ("127.0.0.1", "localhost", "[::1]")
TOKEN = "X-Token"
POLICY = policy()
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_MOST_BODY = 200_000
_HALVES = re.compile("[\ud800-\udfff]")


def new_token() -> str:
    """A word that cannot be guessed."""
    return secrets.token_urlsafe(24)


def several(apps: Mapping[str, FastAPI]) -> FastAPI:
    """The pages of several indexes, each at an address /NAME/ of its own; / leads to the first."""
    outer = _guarded()

    @outer.get("/")
    def first(request: Request) -> Response:
        return RedirectResponse(f"/{next(iter(apps))}/?{request.url.query}")

    for name, app in apps.items():
        outer.mount(f"/{name}", app)
    return outer


class _Guarded:
    """Refuses what another site asks, and says with every answer what a browser may do with it.

    Plain ASGI: a function of FastAPI's would pass each answer through a queue.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        refused = _refusal(Request(scope))
        answer = PlainTextResponse(refused, 403) if refused else self._app
        return await answer(scope, receive, with_headers)


def _guarded() -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(_Guarded)
    return app


def application(
    answers: Answers,
    token: str,
    live: Any = None,
    served: Mapping[str, Index] | None = None,
    name: str = "",
) -> FastAPI:
    """The pages of an index. live: see web.live.Live; None where no text can be run.

    served: all indexes that are, by their names, where they are several, and `name` that of this one.
    """
    app = _guarded()
    questions, served = Questions(answers.index), served or {}
    moved = {other: Moved(answers.index, index) for other, index in served.items() if other != name}

    def lacks_token(request: Request) -> Response | None:
        if secrets.compare_digest(request.headers.get(TOKEN, "").encode(), token.encode()):
            return None
        return _json({"error": "the address lacks its token; open the one that the program printed"}, 403)

    @app.exception_handler(IndexerError)
    async def mistaken(request: Request, error: IndexerError) -> Response:
        return _json({"error": str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    async def unreadable(request: Request, error: RequestValidationError) -> Response:
        return _json({"error": _told(error.errors()[0])}, 400)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return _json({"error": error.detail}, error.status_code)

    @app.get("/api/about")
    def about() -> Response:
        return _json(answers.about() | {"live": live is not None, "indexes": list(served), "name": name})

    @app.get("/api/unit/{name:path}")
    def unit(name: str) -> Response:
        return _json(answers.unit(name))

    @app.get("/api/layers")
    def layers() -> Response:
        return _json(answers.layers())

    @app.get("/api/units")
    def units(
        sort: str = "maximum",
        descending: bool = True,
        where: list[str] = Query([]),  # noqa: B008 - how FastAPI is told
        site: str | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> Response:
        conditions = [_condition(text) for text in where]
        return _json(answers.units(sort, descending, conditions, site, offset, limit))

    @app.get("/api/briefly")
    def briefly(unit: list[str] = Query([])) -> Response:  # noqa: B008
        return _json(answers.briefly(unit))

    @app.get("/api/moved")
    def moved_most(other: str, site: str | None = None, offset: int = 0, limit: int = 50) -> Response:
        if other not in moved:
            raise IndexerError(f'other "{other}": it is none of {", ".join(moved) or "(no other index)"}')
        return _json(moved[other].answer(site, max(offset, 0), min(max(limit, 1), MOST_ROWS)))

    @app.get("/api/search")
    def search(
        token: str | None = None,
        text: str | None = None,
        pattern: str | None = None,
        least: float | None = None,
    ) -> Response:
        given = {"token": token, "text": text, "pattern": pattern}
        asked = [(way, words) for way, words in given.items() if words is not None]
        if len(asked) != 1:
            raise IndexerError("search: give one of token, text and pattern")
        return _json(answers.search(*asked[0], least))

    @app.get("/api/document/{number}")
    def document(number: int, target: bool = False) -> Response:
        return _json(answers.document(number, target))

    def runs(request: Request, asked: dict[str, Any]) -> tuple[Response | None, list[str]]:
        """Why a text is not run, or None; and the pinned units."""
        refused = lacks_token(request)
        if refused is None and live is None:
            raise IndexerError("no model is loaded: start the server with --model")
        pinned = asked.get("pinned", [])
        if not _are_texts(pinned):
            raise IndexerError('text: give the pinned units as {"pinned": ["mlp.5.1733"]}')
        return refused, pinned

    @app.post("/api/text")
    def text(request: Request, asked: dict[str, Any] = Body()) -> Response:  # noqa: B008
        refused, pinned = runs(request, asked)
        if refused is not None:
            return refused
        given = asked.get("text")
        if not _is_text(given):
            raise IndexerError('text: give {"text": "...", "pinned": ["mlp.5.1733"]}')
        return _json(live.answer(given, pinned))

    @app.post("/api/texts")
    def texts(request: Request, asked: dict[str, Any] = Body()) -> Response:  # noqa: B008
        refused, pinned = runs(request, asked)
        if refused is not None:
            return refused
        given: Any = asked.get("texts")
        if not _are_texts(given) or len(given) != 2:
            raise IndexerError('texts: give {"texts": ["...", "..."], "pinned": ["mlp.5.1733"]}')
        return _json(live.both(given, pinned))

    @app.post("/api/sql")
    def sql(request: Request, asked: dict[str, Any] = Body()) -> Response:  # noqa: B008
        refused = lacks_token(request)
        if refused is not None:
            return refused
        query = asked.get("query")
        if not _is_text(query):
            raise IndexerError('sql: give {"query": "SELECT ..."}')
        return _json(questions.ask(query))

    app.mount("/", StaticFiles(directory=str(files("indexer.web") / "static"), html=True))
    return app


def _refusal(request: Request) -> str:
    """Why a request is not answered, empty where it is."""
    host = request.headers.get("host", "")
    name, port = _split(host)
    if name not in LOCAL or port != str(request.scope["server"][1]):
        return f"host {host[:80]!r}: only this machine is answered"
    origin = request.headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return "a page of another site asked"
    length = request.headers.get("content-length", "")
    if request.method == "POST" and not (length.isdigit() and int(length) <= _MOST_BODY):
        return f"what is asked has to be of a known length, {_MOST_BODY:,} bytes at most"
    return ""


def _split(host: str) -> tuple[str, str]:
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and port.isdigit() else (host, "80")


def _is_text(given: Any) -> TypeGuard[str]:
    """Whether it is a text of whole characters; JSON can name halves of them."""
    return isinstance(given, str) and not _HALVES.search(given)


def _are_texts(given: Any) -> bool:
    return isinstance(given, list) and all(map(_is_text, given))


def _told(mistake: dict[str, Any]) -> str:
    """One line of what FastAPI says of a request that is not as it should be."""
    where, given, why = mistake["loc"], mistake.get("input"), str(mistake["msg"])
    told = f' "{" ".join(given.split())[:80]}"' if isinstance(given, str) else ""
    return f"{where[-1] if where[0] != 'body' else 'what is asked'}{told}: {why}"


def _condition(text: str) -> tuple[str, str, float]:
    """A column, a comparison and a number, as `active>=0.5`."""
    for comparison in (">=", "<="):
        column, found, bound = text.partition(comparison)
        if found:
            try:
                return column.strip(), comparison, float(bound)
            except ValueError:
                break
    raise IndexerError(f'condition "{text}": write it as maximum>=2.5 or active<=100')


def _json(value: Any, status: int = 200) -> Response:
    return Response(json_bytes(value), status, media_type="application/json")
