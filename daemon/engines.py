"""How each kind of serving engine is told of a version, and how it says which one it serves.

Each engine raises `EngineError`; one whose `is_untouched` is set was raised before anything changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlencode

from daemon.config_serving import ServingSection, filled
from daemon.http_calls import CallError, Client

_QUICK_S: Final = 30.0
_POLL_S: Final = 0.25
_RESUME_TRIES: Final = 3
_NO_ROUTE: Final = (404, 405)
_DEV_MODE: Final = "start vLLM with VLLM_SERVER_DEV_MODE=1, and let only this machine reach it"


class EngineError(Exception):
    """An engine was not told, or did not do what it was told."""

    def __init__(self, message: str, *, is_untouched: bool = False) -> None:
        super().__init__(message)
        self.is_untouched = is_untouched


class CancelledError(EngineError):
    """The service stops, or another version is wanted by now."""


@dataclass(frozen=True)
class Offer:
    """A version that a replica is told to serve."""

    version: str
    """Its name, such as v3: the label that an engine is given."""
    folder: Path
    """Its model folder, never `models/current`: what lies under this path does not change."""
    action: str
    """How it came into service: publish, rollback, promote; or restore."""
    previous: str
    """What the replica served before, where that is known; else empty."""
    number: int
    """Of the change of `current` that this belongs to."""
    fallback: tuple[str, Path] | None = None
    """Name and folder of the version to go back to when this one cannot be loaded."""


@dataclass(frozen=True)
class Surroundings:
    """What the engines of a home share."""

    home: Path
    cancelled: threading.Event

    def check(self) -> None:
        """Raises CancelledError once the errand is no longer wanted."""
        if self.cancelled.is_set():
            raise CancelledError("it was broken off")

    def pause(self, seconds: float) -> None:
        """Waits. Raises CancelledError."""
        self.cancelled.wait(seconds)
        self.check()

    def secret(self, name: str) -> str:
        """The first line of a file with a key. Raises EngineError."""
        path = self.home / name
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as err:
            raise EngineError(f"{path} cannot be read: {err}", is_untouched=True) from err
        if not lines or not lines[0].strip():
            raise EngineError(f"{path} is empty", is_untouched=True)
        return lines[0].strip()


class Engine(Protocol):
    """One replica, as its kind is spoken to."""

    def send(self, offer: Offer) -> None:
        """Make it serve a version; returns when the engine says that it does. Raises EngineError."""

    def label(self) -> str | None:
        """The label of what it serves; None where it has none to give. Raises CallError."""


def client_of(replica: ServingSection, around: Surroundings, url: str = "") -> Client:
    """Calls to a replica, with its token. Raises EngineError."""
    headers = {}
    if replica.api_key_file:
        headers["Authorization"] = f"Bearer {around.secret(replica.api_key_file)}"
    return Client((url or replica.url).rstrip("/"), headers)


@contextmanager
def told(*, is_untouched: bool, hint: str = "") -> Iterator[None]:
    """A failed call as what it means for the replica; one that never arrived has changed nothing."""
    try:
        yield
    except CallError as err:
        words = f"{err}; {hint}" if hint and err.status in _NO_ROUTE else str(err)
        raise EngineError(words, is_untouched=is_untouched or not err.reached) from err


class Vllm:
    """vLLM's routes of its developer mode: pause, re-read the weights from a folder, drop the prefix cache, go on."""

    def __init__(self, replica: ServingSection, around: Surroundings) -> None:
        self._replica = replica
        self._around = around
        self._client = client_of(replica, around)

    def send(self, offer: Offer) -> None:
        mode = self._replica.pause or "wait"
        pause = _call(self._client, f"/pause?{urlencode({'mode': mode})}", {}, self._replica.timeout_s)
        resume = _call(self._client, "/resume", {}, _QUICK_S)
        with paused(pause, resume, hint=_DEV_MODE):
            self._reload_or_go_back(offer)
            self._forget_prefixes(is_kept=mode == "keep")
            self._set_label(offer.version)

    def label(self) -> str | None:
        return _first_label(self._client, ("/weight_info", "weight_version"))

    def checksum(self) -> str:
        """One digest of its checksums of the weights in memory. Raises EngineError."""
        with told(is_untouched=False, hint="this vLLM has no /weight_checker: leave verify.checksum out"):
            value = self._client.post(
                "/weight_checker", {"action": "checksum"}, timeout_s=self._replica.timeout_s
            ).json()
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    def _reload_or_go_back(self, offer: Offer) -> None:
        """A failed reload leaves no weights at all, and the first request after it ends the engine: so the old ones are
        read again, or those that it was started with, before it goes on."""
        try:
            self._reload({"weights_path": self._path(offer.version, offer.folder)})
        except EngineError as err:
            if not err.is_untouched:
                self._go_back(offer)
            raise

    def _go_back(self, offer: Offer) -> None:
        ways = [{"weights_path": self._path(*offer.fallback)}] if offer.fallback else []
        for kwargs in (*ways, {}):
            with contextlib.suppress(EngineError):
                return self._reload(kwargs)
        return None

    def _path(self, version: str, folder: Path) -> str:
        return filled(self._replica.path, path=str(folder), version=version)

    def _reload(self, kwargs: dict[str, str]) -> None:
        body = {"method": "reload_weights", "kwargs": kwargs, "timeout": self._replica.timeout_s}
        try:
            self._client.post("/collective_rpc", body, timeout_s=self._replica.timeout_s)
        except CallError as err:
            is_missing = err.status in _NO_ROUTE
            words = f"{err}; {_DEV_MODE}" if is_missing else str(err)
            raise EngineError(words, is_untouched=is_missing or not err.reached) from err

    def _forget_prefixes(self, *, is_kept: bool) -> None:
        """What was computed with the old weights must not be gone on from."""
        path = "/reset_prefix_cache" + ("?reset_running_requests=true" if is_kept else "")

        def is_reset() -> bool:
            with told(is_untouched=False):
                body = self._client.post(path, {}, timeout_s=_QUICK_S).body
            return _object(body).get("success") is not False  # older ones answer with nothing

        if not poll(self._around, _QUICK_S, is_reset):
            raise EngineError(f"POST {path}: it keeps what the old weights left in its cache")

    def _set_label(self, version: str) -> None:
        try:
            self._client.post("/update_weight_version", {"new_version": version}, timeout_s=_QUICK_S)
        except CallError as err:
            if err.status not in _NO_ROUTE:  # a vLLM of before that route: golden prompts can tell
                raise EngineError(str(err)) from err


class Sglang:
    """SGLang's update from disk, between pause and continue; it keeps the label itself."""

    def __init__(self, replica: ServingSection, around: Surroundings) -> None:
        self._replica = replica
        self._client = client_of(replica, around)

    def send(self, offer: Offer) -> None:
        body = {
            "model_path": filled(self._replica.path, path=str(offer.folder), version=offer.version),
            "weight_version": offer.version,
            "abort_all_requests": False,
            "flush_cache": True,
        }
        mode = self._replica.pause or "retract"
        pause = _call(self._client, "/pause_generation", {"mode": mode}, self._replica.timeout_s)
        resume = _call(self._client, "/continue_generation", {}, _QUICK_S)
        with paused(pause, resume), told(is_untouched=False):
            reply = self._client.post("/update_weights_from_disk", body, timeout_s=self._replica.timeout_s).json()
            if not (isinstance(reply, dict) and reply.get("success") is True):
                raise EngineError("POST /update_weights_from_disk: it answered without success")

    def label(self) -> str | None:
        return _first_label(
            self._client,
            ("/model_info", "weight_version"),
            ("/get_weight_version", "weight_version"),
            ("/get_model_info", "weight_version"),
        )


class Transformers:
    """`transformers serve`: forgets every loaded model, then loads the version's folder, which is also its name."""

    def __init__(self, replica: ServingSection, around: Surroundings) -> None:
        self._replica = replica
        self._client = client_of(replica, around)

    def send(self, offer: Offer) -> None:
        path = filled(self._replica.path, path=str(offer.folder), version=offer.version)
        with told(is_untouched=False):
            self._client.post("/reset", {}, timeout_s=_QUICK_S)
            reply = self._client.post("/load_model", {"model": path}, timeout_s=self._replica.timeout_s)
        events = [line[len(b"data: ") :] for line in reply.body.splitlines() if line.startswith(b"data: ")]
        last = _object(events[-1]) if events else {}
        if last.get("status") != "ready":
            raise EngineError(f"POST /load_model ended with {last.get('status', 'nothing')}: {last.get('message', '')}")

    def label(self) -> str | None:
        self._client.get("/health", timeout_s=_QUICK_S)
        return None


def _object(text: bytes) -> dict[str, object]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _call(client: Client, path: str, value: object, timeout_s: float) -> Callable[[], object]:
    return lambda: client.post(path, value, timeout_s=timeout_s)


@contextmanager
def paused(pause: Callable[[], object], resume: Callable[[], object], *, hint: str = "") -> Iterator[None]:
    """An engine that answers nobody until the block has ended, however it ends. Raises EngineError."""
    try:
        with told(is_untouched=True, hint=hint):
            pause()
    except EngineError as err:
        cause = err.__cause__
        if isinstance(cause, CallError) and cause.reached and cause.status not in _NO_ROUTE:
            with contextlib.suppress(EngineError):
                _go_on(resume)  # it may have paused before it failed to say so
        raise
    try:
        yield
    finally:
        _go_on(resume)


def _go_on(resume: Callable[[], object]) -> None:
    """Tried several times: an engine that stays paused answers nobody."""
    for left in reversed(range(_RESUME_TRIES)):
        try:
            resume()
        except CallError as err:
            if left == 0:
                raise EngineError(f"it may be paused still: {err}") from err
        else:
            return


def _first_label(client: Client, *routes: tuple[str, str]) -> str | None:
    for path, key in routes:
        try:
            value = client.get(path, timeout_s=_QUICK_S).json()
        except CallError as err:
            if err.status in _NO_ROUTE:
                continue
            raise
        label = value.get(key) if isinstance(value, dict) else None
        if isinstance(label, str) and label:
            return label
    return None


def poll(around: Surroundings, timeout_s: float, ask: Callable[[], bool]) -> bool:
    """Asks until the answer is yes; False when the time is over. Raises CancelledError."""
    end = time.monotonic() + timeout_s
    while not ask():
        if time.monotonic() >= end:
            return False
        around.pause(_POLL_S)
    return True


@contextmanager
def removing(path: Path) -> Iterator[None]:
    """Removes a file at the end, where it is still there."""
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
