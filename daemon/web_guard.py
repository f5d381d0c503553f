"""Who may read the page and who may change something: the token, the cookie, and where a request comes from."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from state import durable

TOKEN_FILE: Final = "web-token"
COOKIE_AGE_S: Final = 30 * 24 * 3600
_COOKIE_RULES: Final = "Path=/; HttpOnly; SameSite=Strict"
_TOKEN_BYTES: Final = 32
_MAX_TOKEN_BYTES: Final = 4096


class TokenFileError(Exception):
    """The token file is none that may be trusted; the message says what to do."""


@dataclass(frozen=True)
class Guard:
    """The rules of one home's page. The token is read at each look, so that another one counts at once.

    A cookie holds a digest of the token and no session: it outlives a restart, and a new token ends it.
    """

    home: Path
    hosts: Collection[str] = ()
    """Names that a request may call the page by, beside localhost and addresses."""

    def make_token(self) -> None:
        """Makes the token file where there is none.

        Raises:
            TokenFileError: what is there can be read or was written by others.
            OSError: it cannot be written.
        """
        path = self.home / TOKEN_FILE
        if not os.path.lexists(path):
            durable.write_file(path, f"{secrets.token_urlsafe(_TOKEN_BYTES)}\n".encode(), 0o600)
        self._token()

    def is_token(self, given: str) -> bool:
        """Whether somebody knows the token."""
        return hmac.compare_digest(given.strip().encode(), self._token())

    def cookie(self) -> str:
        """The `Set-Cookie` of whoever gave the token."""
        return f"{self._cookie_name()}={self._derived('cookie')}; Max-Age={COOKIE_AGE_S}; {_COOKIE_RULES}"

    def no_cookie(self) -> str:
        """The `Set-Cookie` that takes it away."""
        return f"{self._cookie_name()}=; Max-Age=0; {_COOKIE_RULES}"

    def form_token(self) -> str:
        """What a form of the page holds and a form of another site cannot know."""
        return self._derived("form")

    def is_form_token(self, given: str) -> bool:
        """Whether a form is one of the page's."""
        return hmac.compare_digest(given.encode(), self._derived("form").encode())

    def has_cookie(self, headers: Mapping[str, str]) -> bool:
        """Whether the request comes from a browser that was given the cookie."""
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self._cookie_name())
        except CookieError:
            return False
        return found is not None and hmac.compare_digest(found.value.encode(), self._derived("cookie").encode())

    def has_bearer(self, headers: Mapping[str, str]) -> bool:
        """Whether the request carries the token itself, as scripts send it."""
        kind, _, given = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and self.is_token(given)

    def is_host(self, host: str) -> bool:
        """Whether a `Host` header names this page: another name may be a stranger's that resolves to this machine."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in {"localhost", *(known.lower() for known in self.hosts)} or _is_address(name)

    def _token(self) -> bytes:
        path = self.home / TOKEN_FILE
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as err:
            raise TokenFileError(f"{path} cannot be read ({err.strerror}); without it the service makes one") from err
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise TokenFileError(
                    f"{path} must be a file of the service's user that nobody else can read: chmod 600"
                )
            token = file.read(_MAX_TOKEN_BYTES).strip()
        if len(token) < _TOKEN_BYTES:
            raise TokenFileError(f"{path} holds fewer than {_TOKEN_BYTES} characters; without it the service makes one")
        return token

    def _cookie_name(self) -> str:
        # cookies know no ports: two homes on one machine must not take each other's away
        return f"alignd-{self._derived('name')[:8]}"

    def _derived(self, purpose: str) -> str:
        return hmac.new(self._token(), purpose.encode(), hashlib.sha256).hexdigest()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_own_origin(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that the request comes from a page of this very host and port."""
    origin = urlsplit(headers.get("origin", ""))
    is_ours = origin.scheme in ("http", "https") and origin.netloc.lower() == headers.get("host", "").lower()
    return is_ours and headers.get("sec-fetch-site", "same-origin") == "same-origin"
