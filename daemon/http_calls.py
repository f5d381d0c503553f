"""HTTP calls to serving engines, from the standard library: no redirects, no proxies, one deadline over everything."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

_CONNECT_S: Final = 10.0
_MAX_REPLY_BYTES: Final = 4 << 20
_READ_BYTES: Final = 1 << 16
_SHOWN_CHARS: Final = 300
_UNAVAILABLE: Final = (429, 503)


class CallError(Exception):
    """A call that did not do what it was meant to; the message holds no prompt and no answer.

    Args:
        status: the HTTP status; None when there was no answer.
        reached: the request may have been taken in.
    """

    def __init__(self, message: str, *, status: int | None = None, reached: bool = True) -> None:
        super().__init__(message)
        self.status = status
        self.reached = reached

    @property
    def is_passing(self) -> bool:
        """It may well work in a moment: nobody listens yet, or the engine says that it is busy."""
        return self.status in _UNAVAILABLE or not self.reached


@dataclass(frozen=True)
class Reply:
    """A 2xx answer."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON. Raises CallError."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as err:
            raise CallError("the answer is no JSON", status=self.status) from err


@dataclass(frozen=True)
class _Request:
    method: str
    target: str
    body: bytes | None
    headers: dict[str, str]
    what: str
    """The request in words, for errors."""


@dataclass(frozen=True)
class Client:
    """Calls one address.

    Args:
        url: with or without a path, which stands before that of each call.
        headers: sent with every call; a bearer token, for instance.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def get(self, path: str, *, timeout_s: float) -> Reply:
        """The answer to a GET. Raises CallError, also on any status but 2xx."""
        return self.call("GET", path, None, timeout_s=timeout_s)

    def post(self, path: str, value: Any, *, timeout_s: float) -> Reply:
        """The answer to a POST of a JSON value. Raises CallError, also on any status but 2xx."""
        return self.call("POST", path, json.dumps(value).encode(), timeout_s=timeout_s)

    def call(
        self, method: str, path: str, body: bytes | None, *, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """The answer to one request, all of it within ``timeout_s``. Raises CallError."""
        parts = urlsplit(self.url)
        target = parts.path.rstrip("/") + path + (f"?{parts.query}" if parts.query else "")
        given = {"User-Agent": "alignd", "Content-Type": "application/json", **self.headers, **(headers or {})}
        request = _Request(method, target or "/", body, given, what=f"{method} {path or parts.path or '/'}")
        connection = _connection(parts.scheme, parts.hostname or "", parts.port, min(timeout_s, _CONNECT_S))
        try:
            _connect(connection, request.what)
            with _deadline(connection, timeout_s) as is_over:
                status, content = _exchange(connection, request, is_over)
        finally:
            connection.close()
        if not 200 <= status < 300:
            raise CallError(f"{request.what} answered {status}{_said(content)}", status=status)
        return Reply(status, content)


def _connection(scheme: str, host: str, port: int | None, timeout_s: float) -> http.client.HTTPConnection:
    if scheme == "https":
        import ssl  # most engines are on this machine

        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port, timeout=timeout_s)


def _connect(connection: http.client.HTTPConnection, what: str) -> None:
    try:
        connection.connect()
    except (OSError, UnicodeError) as err:  # a host's name may be no name
        reason = getattr(err, "strerror", None) or str(err) or type(err).__name__
        at = f"{connection.host}:{connection.port}"
        raise CallError(f"{what}: {at} cannot be reached: {reason}", reached=False) from err


def _exchange(connection: http.client.HTTPConnection, request: _Request, is_over: threading.Event) -> tuple[int, bytes]:
    try:
        connection.request(request.method, request.target, body=request.body, headers=request.headers)
        response = connection.getresponse()
        content = _read(response, request.what)
    except (OSError, http.client.HTTPException, ValueError) as err:
        if is_over.is_set():
            raise CallError(f"{request.what}: no whole answer in time") from err
        raise CallError(f"{request.what}: the connection broke: {str(err) or type(err).__name__}") from err
    if is_over.is_set():  # a body without a length ends where the connection does
        raise CallError(f"{request.what}: no whole answer in time")
    return response.status, content


def _read(response: http.client.HTTPResponse, what: str) -> bytes:
    content = bytearray()
    while chunk := response.read(_READ_BYTES):
        content += chunk
        if len(content) > _MAX_REPLY_BYTES:
            raise CallError(f"{what}: the answer is longer than {_MAX_REPLY_BYTES} bytes", status=response.status)
    return bytes(content)


@contextmanager
def _deadline(connection: http.client.HTTPConnection, timeout_s: float) -> Iterator[threading.Event]:
    """Cut the connection when the time is over, however slowly bytes trickle in; the event tells that it was."""
    is_over = threading.Event()
    sock = connection.sock
    sock.settimeout(timeout_s + 1)

    def cut() -> None:
        is_over.set()
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(timeout_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield is_over
    finally:
        timer.cancel()


def _said(content: bytes) -> str:
    """What an engine says about an error, in one short line; empty where it says nothing that can be told."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    text = _message(value)
    return f": {' '.join(text.split())[:_SHOWN_CHARS]}" if text else ""


def _message(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        found = (value.get(key) for key in ("message", "error", "detail", "msg", "reason"))
        return next((text for text in map(_message, found) if text), "")
    return ""
