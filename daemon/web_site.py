"""The page as a site: from a request to an answer, behind the guard."""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args
from urllib.parse import quote, urlencode

import structlog

from daemon import exitcodes, web_facts, web_template
from daemon.command import Answer, CommandError
from daemon.log import WEB_CHANGED, WEB_REFUSED
from daemon.views import View
from daemon.web_actions import ACTIONS, Action, PageContext, perform
from daemon.web_guard import Guard, TokenFileError, is_own_origin
from daemon.web_http import JSON, TEXT, Request, Response, see_other
from state.errors import LockedError, NotFoundError, RefusedError, StoreError
from state.rows import BatchState

if TYPE_CHECKING:
    from state.store import Store

STATIC: Final = Path(__file__).parent / "static"
_KINDS: Final = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
_VERSION: Final = re.compile(r"/versions/(v?[0-9]{1,9}|current|previous|candidate|base)")
_BATCH: Final = re.compile(r"/batches/([0-9a-f]{64})")
_REF: Final = re.compile(r"[A-Za-z0-9@._~-]{1,200}")
_CONFIRM: Final = re.compile(r"/confirm/([a-z]+)")
_DO: Final = re.compile(r"/do/([a-z]+)")
_LOCAL_PATH: Final = re.compile(r"/(?![/\\])[\x21-\x7e]*")
_MAX_NOTICES: Final = 50
_MAX_REASON_CHARS: Final = 500

_log = structlog.get_logger()


class _RefusedRequestError(Exception):
    """A request that the guard turns away; `status` is what is answered."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Visitor:
    """What somebody may do."""

    may_read: bool
    may_change: bool
    is_script: bool = False
    """The token came in a header, as scripts send it."""


class Site:
    """The page of one home; may be asked by several threads.

    Args:
        is_private: reading needs the token as well.
        wake: called after a change, so that the supervisor looks at once.
    """

    def __init__(self, context: PageContext, guard: Guard, *, is_private: bool, wake: Callable[[], None]) -> None:
        self._context, self._guard, self._is_private, self._wake = context, guard, is_private, wake
        self._notices: OrderedDict[str, Answer] = OrderedDict()
        self._notices_lock = threading.Lock()

    def answer(self, request: Request) -> Response:
        """The response to any request."""
        try:
            self._check_host(request)
            if request.method == "GET" and request.path.startswith("/static/"):
                return _static(request.path)
            self._guard.make_token()
            visitor = self._visitor(request)
            return self._post(request, visitor) if request.method == "POST" else self._get(request, visitor)
        except _RefusedRequestError as err:
            _log.warning(WEB_REFUSED, reason=str(err), peer=request.peer, status=int(err.status))
            return Response(f"{err}\n".encode(), err.status, TEXT)
        except (StoreError, CommandError, TokenFileError, OSError) as err:
            return self._failed(request, err)

    def _check_host(self, request: Request) -> None:
        if not self._guard.is_host(request.headers.get("host", "")):
            hint = "that is no name of this page; [web] hosts in service.toml lists more names"
            raise _RefusedRequestError(HTTPStatus.MISDIRECTED_REQUEST, hint)

    def _visitor(self, request: Request) -> Visitor:
        if self._guard.has_bearer(request.headers):
            return Visitor(True, True, is_script=True)
        is_known = self._guard.has_cookie(request.headers)
        return Visitor(is_known or not self._is_private, is_known)

    # reading

    def _get(self, request: Request, visitor: Visitor) -> Response:
        if request.path == "/login":
            return self._login_page(request)
        if not visitor.may_read:
            if request.path == "/live":
                return _json({"error": "the token is needed"}, HTTPStatus.UNAUTHORIZED)
            return see_other(_login_path(request.target))
        with self._context.store() as store:
            if request.path == "/live":
                return self._live(store, request)
            if found := _CONFIRM.fullmatch(request.path):
                return self._confirm(store, request, visitor, _action(found[1]))
            name, facts = _page(self._context, store, request)
            return self._render(store, request, visitor, name, facts)

    def _live(self, store: Store, request: Request) -> Response:
        """The parts that change by themselves, as HTML by id, and what tells a page that it is old."""
        is_now = request.query.get("page") == "now"
        facts = web_facts.now(self._context, store) if is_now else web_facts.standing(self._context, store)
        parts = web_template.live_parts(facts, with_now=is_now)
        return _json({"seq": facts["seq"], "parts": parts})

    def _confirm(self, store: Store, request: Request, visitor: Visitor, action: Action) -> Response:
        if not visitor.may_change:
            return see_other(_login_path(request.target))
        preview = action.preview(store, request.query.get("ref", ""))
        return self._render(store, request, visitor, "confirm", {"action": action, "preview": preview})

    def _render(
        self, store: Store, request: Request, visitor: Visitor, name: str, facts: Mapping[str, Any]
    ) -> Response:
        told = dict(facts) if "frame" in facts else {**web_facts.standing(self._context, store), **facts}
        return self._page(request, visitor, name, told)

    def _page(
        self, request: Request, visitor: Visitor, name: str, facts: Mapping[str, Any], status: int = HTTPStatus.OK
    ) -> Response:
        about = {
            "page": name,
            "path": request.path,
            "here": request.target,
            "visitor": visitor,
            "form_token": self._guard.form_token() if visitor.may_change else "",
            "notice": self._taken_notice(request.query.get("done", "")),
        }
        return Response(web_template.render(name, {**about, **facts}).encode(), status)

    # changing

    def _post(self, request: Request, visitor: Visitor) -> Response:
        if not visitor.is_script and not is_own_origin(request.headers):
            raise _RefusedRequestError(HTTPStatus.FORBIDDEN, "this request does not come from this page")
        if request.path == "/login":
            return self._login(request)
        if not visitor.may_change:
            raise _RefusedRequestError(HTTPStatus.UNAUTHORIZED, "the token is needed: log in, or send it as a header")
        if not visitor.is_script and not self._guard.is_form_token(request.form.get("form_token", "")):
            raise _RefusedRequestError(HTTPStatus.FORBIDDEN, "this form is not one of this page; load it again")
        if request.path == "/logout":
            return see_other("/", **{"Set-Cookie": self._guard.no_cookie()})
        if found := _DO.fullmatch(request.path):
            return self._do(request, visitor, _action(found[1]))
        raise NotFoundError("there is nothing to do here")

    def _do(self, request: Request, visitor: Visitor, action: Action) -> Response:
        ref, reason = request.form.get("ref", ""), request.form.get("reason", "")[:_MAX_REASON_CHARS]
        with self._context.store() as store:
            preview = action.preview(store, ref)
        stamp = preview.stamp if visitor.is_script else request.form.get("stamp", "")
        answer = perform(action, self._context, ref=ref, reason=reason, stamp=stamp)
        _log.info(WEB_CHANGED, action=action.name, subject=preview.ref, peer=request.peer)
        self._wake()
        if visitor.is_script:
            return _json(answer.data)
        return see_other(f"{preview.back}?{urlencode({'done': self._put_notice(answer)})}")

    def _login_page(self, request: Request, *, wrong: bool = False) -> Response:
        target = _local(request.query.get("next", "") or request.form.get("next", ""))
        status = HTTPStatus.UNAUTHORIZED if wrong else HTTPStatus.OK
        facts = {"next": target, "wrong": wrong, "frame": None, "seq": ""}
        return self._page(request, Visitor(not self._is_private, False), "login", facts, status)

    def _login(self, request: Request) -> Response:
        if not self._guard.is_token(request.form.get("token", "")):
            _log.warning(WEB_REFUSED, reason="wrong token", peer=request.peer, status=int(HTTPStatus.UNAUTHORIZED))
            return self._login_page(request, wrong=True)
        return see_other(_local(request.form.get("next", "")), **{"Set-Cookie": self._guard.cookie()})

    def _failed(self, request: Request, err: StoreError | CommandError | TokenFileError | OSError) -> Response:
        status = _status_of(err)
        hint = getattr(err, "hint", "")
        if request.path == "/live" or request.headers.get("authorization"):
            return _json({"error": str(err), "hint": hint}, status)
        facts = {"message": str(err), "hint": hint, "frame": None, "seq": ""}
        if isinstance(err, TokenFileError):
            return Response(f"{err}\n".encode(), status, TEXT)
        return self._page(request, self._visitor(request), "message", facts, status)

    # what was done, told once on the page after it

    def _put_notice(self, answer: Answer) -> str:
        key = secrets.token_hex(8)
        with self._notices_lock:
            self._notices[key] = answer
            while len(self._notices) > _MAX_NOTICES:
                self._notices.popitem(last=False)
        return key

    def _taken_notice(self, key: str) -> Answer | None:
        with self._notices_lock:
            return self._notices.pop(key, None)


def _page(context: PageContext, store: Store, request: Request) -> tuple[str, View]:
    """The template and the facts of a page that can be read."""
    query, path = request.query, request.path
    before = _number(query.get("before", ""))
    if path == "/":
        return "now", web_facts.now(context, store)
    if path == "/versions":
        span = query.get("span", "")
        return "versions", web_facts.versions(store, before, span if span in web_facts.SPANS else web_facts.SPANS[0])
    if found := _VERSION.fullmatch(path):
        return "version", web_facts.version(store, found[1])
    if path == "/harm":
        return "harm", web_facts.harm(store, before)
    if path == "/diff":
        return "diff", _difference(store, query)
    if path == "/batches":
        state = query.get("state", "")
        states = get_args(BatchState)
        return "batches", web_facts.batches(store, before, state if state in states else "") | {"states": states}
    if found := _BATCH.fullmatch(path):
        return "batch", web_facts.batch(store, found[1])
    if path == "/quarantine":
        return "quarantine", web_facts.quarantine(store, _number(query.get("page", "")) or 0)
    if path == "/audit":
        return "audit", web_facts.trail(store, before, query.get("about", "")[:200])
    raise NotFoundError("there is no such page")


def _difference(store: Store, query: Mapping[str, str]) -> View:
    a, b = query.get("a", "") or "base", query.get("b", "") or "current"
    for ref in (a, b):
        if _REF.fullmatch(ref) is None:
            raise NotFoundError("no version is called so")
    return web_facts.difference(store, a, b)


def _action(name: str) -> Action:
    if name not in ACTIONS:
        raise NotFoundError("there is nothing to do here")
    return ACTIONS[name]


def _static(path: str) -> Response:
    file = STATIC / path.removeprefix("/static/")
    if file.parent != STATIC or file.suffix not in _KINDS or not file.is_file():
        return Response(b"there is no such file\n", HTTPStatus.NOT_FOUND, TEXT)
    return Response(file.read_bytes(), kind=_KINDS[file.suffix], headers={"Cache-Control": "no-cache"})


def _json(value: Any, status: int = HTTPStatus.OK) -> Response:
    return Response(json.dumps(value).encode(), status, JSON)


def _login_path(target: str) -> str:
    return f"/login?next={quote(target, safe='')}"


def _local(path: str) -> str:
    """A path of this page; the first page for anything else."""
    return path if _LOCAL_PATH.fullmatch(path) else "/"


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _status_of(err: Exception) -> HTTPStatus:
    if isinstance(err, NotFoundError) or (isinstance(err, CommandError) and err.code == exitcodes.NOT_FOUND):
        return HTTPStatus.NOT_FOUND
    if isinstance(err, RefusedError | CommandError):
        return HTTPStatus.CONFLICT
    if isinstance(err, LockedError | TokenFileError | OSError):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.INTERNAL_SERVER_ERROR
