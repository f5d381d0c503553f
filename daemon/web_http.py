"""HTTP as the page speaks it: a request as values, an answer with the headers that keep a browser strict, few threads."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

import structlog

from daemon.log import WEB_ANSWERED_WITH_ERROR

HTML: Final = "text/html; charset=utf-8"
TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
MAX_BODY_BYTES: Final = 16 * 1024
MAX_FIELDS: Final = 20
MAX_CONNECTIONS: Final = 32
_IDLE_S: Final = 20
_ERROR: Final = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_FORM: Final = "application/x-www-form-urlencoded"
_STRICT: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # not no-referrer: a form would then be sent with `Origin: null`, which no page of ours is told by
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

_log = structlog.get_logger()


@dataclass(frozen=True)
class Request:
    """What somebody asked for; header names are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    form: Mapping[str, str]
    headers: Mapping[str, str]
    peer: str = ""

    @property
    def target(self) -> str:
        """Path and query, as a link has them."""
        return self.path + (f"?{urlencode(self.query)}" if self.query else "")


@dataclass(frozen=True)
class Response:
    """What is answered."""

    body: bytes = b""
    status: int = HTTPStatus.OK
    kind: str = HTML
    headers: Mapping[str, str] = field(default_factory=dict)


def see_other(path: str, **headers: str) -> Response:
    """Sends a browser on to another page by GET."""
    return Response(status=HTTPStatus.SEE_OTHER, headers={"Location": path, **headers})


class _BadRequestError(Exception):
    """A request that cannot be read; `status` is what is answered."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class PageServer(socketserver.ThreadingTCPServer):
    """Answers on a socket that listens already, a thread a connection, and no more of them than `MAX_CONNECTIONS`.

    Args:
        answer: gives the response to a request; called by several threads.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, opened: socket.socket, answer: Callable[[Request], Response]) -> None:
        self.answer = answer
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        # not TCPServer's own: it would make a socket first, which the systemd unit forbids
        socketserver.BaseServer.__init__(self, opened.getsockname(), _Handler)
        self.socket = opened

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for a connection; one too many is closed."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._open_lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The thread of one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._open_lock:
                self._open.discard(request)
            self._free.release()

    def server_close(self) -> None:
        """Ends the server with every connection, also those that a browser keeps open for its next request."""
        super().server_close()
        with self._open_lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs what went wrong with a request, without what it held, and says that something did."""
        kind, err, _ = sys.exc_info()
        if isinstance(err, ConnectionError | TimeoutError):
            return  # the browser went away
        _log.error(WEB_ANSWERED_WITH_ERROR, error=kind.__name__ if kind else "", exc_info=True)
        with contextlib.suppress(OSError):
            request.sendall(_ERROR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "alignd", ""
    timeout = _IDLE_S
    server: PageServer

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged; what they change is in the audit file."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses, under the same headers as everything else."""
        self.close_connection = True
        self._send(Response(f"{HTTPStatus(code).phrase}\n".encode(), code, TEXT))

    def _answer(self) -> None:
        try:
            request = self._request()
        except _BadRequestError as err:
            self.close_connection = True  # its body was not read
            self._send(Response(f"{err}\n".encode(), err.status, TEXT))
            return
        self._send(self.server.answer(request))

    def _request(self) -> Request:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1:
            raise _BadRequestError(HTTPStatus.BAD_REQUEST, "one Host header is needed")
        try:
            url = urlsplit(self.path)
        except ValueError as err:
            raise _BadRequestError(HTTPStatus.BAD_REQUEST, "the address cannot be read") from err
        return Request(
            method="GET" if self.command == "HEAD" else self.command,
            path=url.path,
            query=_fields(url.query),
            form=self._form(),
            headers={name.lower(): value for name, value in self.headers.items()},
            peer=self.client_address[0],
        )

    def _form(self) -> dict[str, str]:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers:
            raise _BadRequestError(HTTPStatus.LENGTH_REQUIRED, "a body needs a Content-Length")
        if not length.isascii() or not length.isdecimal():
            raise _BadRequestError(HTTPStatus.BAD_REQUEST, "Content-Length is no number")
        if len(length) > 9 or int(length) > MAX_BODY_BYTES:
            raise _BadRequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body may have {MAX_BODY_BYTES} bytes")
        body = self.rfile.read(int(length))
        if body and self.headers.get_content_type() != _FORM:
            raise _BadRequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"a body must be {_FORM}")
        return _fields(body.decode("ascii", "replace"))

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        headers = {"Cache-Control": "no-store", **_STRICT, **response.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", response.kind)
        self.send_header("Content-Length", str(len(response.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)


def _fields(text: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError as err:
        raise _BadRequestError(HTTPStatus.BAD_REQUEST, f"more than {MAX_FIELDS} fields") from err
