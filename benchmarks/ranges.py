"""An index read over HTTP by ranges of bytes, from a server here that counts what it is asked for."""

from __future__ import annotations

import io
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa

from indexer.index.read import Index


class Asked:
    """What a server was asked for since the last `clear`: requests and bytes of each file."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def clear(self) -> None:
        """Forget it."""
        self.requests.clear()
        self.bytes.clear()


@contextmanager
def remote(path: Path) -> Iterator[tuple[Index, Asked]]:
    """An index whose Parquet files are read from a server, as from a bucket; and what it was asked for."""
    asked = Asked()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(path, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder = path.resolve()
    connections: list[HTTPConnection] = []

    def source(file: Path) -> pa.NativeFile:
        name = file.relative_to(folder).as_posix()
        connections.append(HTTPConnection("127.0.0.1", server.server_port))
        # the manifest says how large a file is
        return pa.PythonFile(_RangeFile(connections[-1], name, file.stat().st_size), mode="r")

    try:
        with Index(path, source) as index:
            yield index, asked
    finally:
        for connection in connections:
            connection.close()
        server.shutdown()
        server.server_close()


class _RangeFile(io.RawIOBase):
    """A file of the server; every read is a request."""

    def __init__(self, connection: HTTPConnection, name: str, size: int) -> None:
        self._connection, self._name, self._size = connection, name, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._at + size, self._size)
        if end <= self._at:
            return b""
        self._connection.request("GET", f"/{self._name}", headers={"Range": f"bytes={self._at}-{end - 1}"})
        content = self._connection.getresponse().read()
        self._at += len(content)
        return content


def _handler(folder: Path, asked: Asked) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            """Answer a request for one range."""
            name = self.path[1:]
            first, last = map(int, re.findall(r"\d+", self.headers["Range"]))
            with open(folder / name, "rb") as file:
                file.seek(first)
                content = file.read(last + 1 - first)
            asked.requests[name] += 1
            asked.bytes[name] += len(content)
            self.send_response(206)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler
