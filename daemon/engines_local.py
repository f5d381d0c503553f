"""Engines that are told through this machine: the llama.cpp router, a program, a webhook, a systemd unit."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from daemon.config_serving import ServingSection, filled
from daemon.engines import EngineError, Offer, Surroundings, client_of, poll, removing, told
from daemon.http_calls import CallError
from state import durable

_QUICK_S: Final = 30.0
_SAID_CHARS: Final = 200
_SECRET_PREFIX: Final = "whsec_"
_PLACED_MODE: Final = 0o644


class LlamaCpp:
    """The router of `llama-server --models-dir`: a new GGUF file under the model's name, then unload and load.

    Its `reload=1` compares names and options, not what is in a file, so a running model must be unloaded by hand.
    """

    def __init__(self, replica: ServingSection, around: Surroundings) -> None:
        self._replica = replica
        self._around = around
        self._client = client_of(replica, around)

    def send(self, offer: Offer) -> None:
        folder = self._around.home / self._replica.models_dir
        target = folder / f"{self._replica.model}.gguf"
        made = folder / f".{self._replica.model}.{os.getpid()}.tmp"
        with removing(made):
            self._convert(offer, made)
            with told(is_untouched=True):
                self._client.get("/models", timeout_s=_QUICK_S)  # before anything changes: is it there at all?
            self._place(made, target)
        with told(is_untouched=False):
            self._client.get("/models?reload=1", timeout_s=_QUICK_S)
            self._switch("unload", wanted=("unloaded",))
            self._switch("load", wanted=("loaded", "sleeping"))

    def label(self) -> str | None:
        self._client.get("/health", timeout_s=_QUICK_S)
        return None

    def _convert(self, offer: Offer, made: Path) -> None:
        values = {"path": str(offer.folder), "version": offer.version, "out": str(made)}
        command = [filled(word, **values) for word in self._replica.convert]
        run_program(command, {}, self._around, timeout_s=self._replica.timeout_s, is_untouched=True)
        if not made.is_file():
            raise EngineError(f"{command[0]} made no file", is_untouched=True)

    def _place(self, made: Path, target: Path) -> None:
        try:
            durable.set_mode(made, _PLACED_MODE)
            made.replace(target)  # a new inode: what is mapped still is not written to
        except OSError as err:
            raise EngineError(f"{target}: {err.strerror}", is_untouched=True) from err

    def _switch(self, verb: str, wanted: Sequence[str]) -> None:
        try:
            self._client.post(f"/models/{verb}", {"model": self._replica.model}, timeout_s=_QUICK_S)
        except CallError as err:
            if err.status != 400 or self._status()[0] not in wanted:  # "model is not running", "is already running"
                raise
        if not poll(self._around, self._replica.timeout_s, lambda: self._is_there(wanted)):
            raise EngineError(f"POST /models/{verb}: not {wanted[0]} after {self._replica.timeout_s:.0f} s")

    def _is_there(self, wanted: Sequence[str]) -> bool:
        value, has_failed = self._status()
        if has_failed and value not in wanted:
            raise EngineError("the router could not load the model")
        if has_failed and "loaded" in wanted:
            raise EngineError("the router could not load the model")
        return value in wanted

    def _status(self) -> tuple[str, bool]:
        with told(is_untouched=False):
            listed = self._client.get("/models", timeout_s=_QUICK_S).json()
        models = listed.get("data") if isinstance(listed, dict) else None
        for model in models if isinstance(models, list) else []:
            if isinstance(model, dict) and model.get("id") == self._replica.model:
                status: dict[str, Any] = model.get("status") or {}
                return str(status.get("value", "")), bool(status.get("failed"))
        raise EngineError(f"GET /models lists no {self._replica.model}")


class Program:
    """A program that is told by its arguments and its environment; it exits with 0 once the engine serves the version."""

    def __init__(self, replica: ServingSection, around: Surroundings) -> None:
        self._replica = replica
        self._around = around

    def send(self, offer: Offer) -> None:
        place_link(self._replica, self._around, offer)
        path = filled(self._replica.path, path=str(offer.folder), version=offer.version)
        command = [filled(word, path=path, version=offer.version) for word in self._replica.command]
        told_by = {
            "ALIGND_VERSION": offer.version,
            "ALIGND_VERSION_PATH": path,
            "ALIGND_PREVIOUS": offer.previous,
            "ALIGND_ACTION": offer.action,
            "ALIGND_REPLICA": self._replica.name,
        }
        run_program(command, told_by, self._around, timeout_s=self._replica.timeout_s)

    def label(self) -> str | None:
        return None


class Webhook:
    """A signed POST, as the Standard Webhooks specification has it; any 2xx says that it was taken in."""

    def __init__(self, replica: ServingSection, around: Surroundings) -> None:
        self._replica = replica
        self._around = around
        self._client = client_of(replica, around)

    def send(self, offer: Offer) -> None:
        key = secret_bytes(self._around.secret(self._replica.secret_file))
        place_link(self._replica, self._around, offer)
        now = time.time()
        body = webhook_body(self._replica, offer, at=now)
        headers = signature_headers(key, f"alignd-{self._replica.name}-{offer.number}-{offer.version}", now, body)
        with told(is_untouched=False):
            self._client.call("POST", "", body, timeout_s=self._replica.timeout_s, headers=headers)

    def label(self) -> str | None:
        return None


class SystemdUnit:
    """Restarts a unit, which reads `link` or `models/current` when it starts."""

    def __init__(self, replica: ServingSection, around: Surroundings) -> None:
        self._replica = replica
        self._around = around

    def send(self, offer: Offer) -> None:
        place_link(self._replica, self._around, offer)
        command = ["systemctl", "--no-ask-password", "restart", self._replica.unit]
        run_program(command, {}, self._around, timeout_s=self._replica.timeout_s)
        command = ["systemctl", "is-active", "--quiet", self._replica.unit]
        run_program(command, {}, self._around, timeout_s=_QUICK_S)

    def label(self) -> str | None:
        return None


def place_link(replica: ServingSection, around: Surroundings, offer: Offer) -> None:
    """Points the replica's link, where it has one, at the folder. Raises EngineError."""
    if not replica.link:
        return
    link = around.home / replica.link
    try:
        if link.exists() and not link.is_symlink():
            raise EngineError(f"{link} is no link; alignd replaces nothing else", is_untouched=True)
        durable.replace_symlink(link, filled(replica.path, path=str(offer.folder), version=offer.version))
    except OSError as err:
        raise EngineError(f"{link}: {err.strerror}", is_untouched=True) from err


def run_program(
    command: Sequence[str],
    told_by: dict[str, str],
    around: Surroundings,
    *,
    timeout_s: float,
    is_untouched: bool = False,
) -> str:
    """What a program printed; its own process group is ended with it. Raises EngineError unless it exits with 0."""
    name = command[0]
    try:
        process = subprocess.Popen(
            command,
            cwd=around.home,
            env={**os.environ, **told_by},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as err:
        raise EngineError(f"{name} cannot be run: {err}", is_untouched=True) from err
    printed = _finish(process, around, timeout_s, name)
    if process.returncode != 0:
        last = (printed.strip().splitlines() or ["it said nothing"])[-1]
        words = f"{name} exited with {process.returncode}: {last[:_SAID_CHARS]}"
        raise EngineError(words, is_untouched=is_untouched)
    return printed


def _finish(process: subprocess.Popen[bytes], around: Surroundings, timeout_s: float, name: str) -> str:
    end = time.monotonic() + timeout_s
    try:
        while True:
            around.check()
            try:
                printed, _ = process.communicate(timeout=0.1)
            except subprocess.TimeoutExpired:
                if time.monotonic() < end:
                    continue
                raise EngineError(f"{name} was still running after {timeout_s:.0f} s") from None
            return printed.decode(errors="replace")
    finally:
        if process.poll() is None:
            _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    import signal
    from contextlib import suppress

    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def webhook_body(replica: ServingSection, offer: Offer, *, at: float) -> bytes:
    """What a webhook is told."""
    return json.dumps(
        {
            "type": "version.serve",
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)),
            "data": {
                "replica": replica.name,
                "version": offer.version,
                "path": filled(replica.path, path=str(offer.folder), version=offer.version),
                "previous": offer.previous or None,
                "action": offer.action,
            },
        }
    ).encode()


def secret_bytes(text: str) -> bytes:
    """A webhook's key: `whsec_` and base64, as the specification writes it, or any other text as it is."""
    if not text.startswith(_SECRET_PREFIX):
        return text.encode()
    try:
        return base64.b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
    except ValueError as err:
        raise EngineError("the webhook's secret begins with whsec_ and is no base64", is_untouched=True) from err


def signature_headers(key: bytes, message_id: str, at: float, body: bytes) -> dict[str, str]:
    """The three headers of a signed webhook.

    Source: Standard Webhooks 1.0.0: HMAC-SHA256 of "id.timestamp.body", in base64 after "v1,".
    """
    stamp = str(int(at))
    signed = b".".join([message_id.encode(), stamp.encode(), body])
    digest = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {"webhook-id": message_id, "webhook-timestamp": stamp, "webhook-signature": f"v1,{digest}"}
