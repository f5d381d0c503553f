"""Stand-ins for serving engines: the routes, status codes and faults of their published interfaces, in threads.

What they answer was compared with a real vLLM 0.32 and a real llama-server; SGLang's is from its source and its threads.
A model folder is told by its name: a stand-in that loaded `…/models/v2` answers prompts with "zorp v2".
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, Any]
Route = Callable[["Stand", dict[str, str], Any], Answer]


@dataclass
class Stand:
    """One engine that listens on a port of its own; a context manager."""

    routes: dict[tuple[str, str], Route]
    folder: str = "start"
    """Whose weights it has; empty: none, and the next prompt ends it."""
    label: str = "default"
    is_paused: bool = False
    is_garbage: bool = False
    api_key: str = ""
    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    """(method, path with query, JSON body) of each request."""
    faults: dict[str, list[Answer | float]] = field(default_factory=dict)
    """Path -> what happens to the next requests there: an answer of its own, or seconds of silence and then the usual."""
    port: int = 0
    more: dict[str, Any] = field(default_factory=dict)
    _server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Stand:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listens, on the port that it had before."""
        stand = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                _serve(stand, self)

            do_POST = do_GET  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that went away is no matter."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Refuses connections from here on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def paths(self) -> list[str]:
        """Method and path of each request so far."""
        return [f"{method} {path}" for method, path, _ in list(self.calls)]

    def fail(self, path: str, *answers: Answer | float) -> None:
        """What happens to the next requests to a path."""
        self.faults.setdefault(path, []).extend(answers)


def _serve(stand: Stand, handler: BaseHTTPRequestHandler) -> None:
    parts = urlsplit(handler.path)
    raw = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    try:
        body = json.loads(raw) if raw else None
    except ValueError:
        body = ValueError
    stand.calls.append((handler.command, handler.path, body))
    stand.more["headers"], stand.more["raw"] = dict(handler.headers), raw
    queue = stand.faults.get(parts.path, [])
    fault = queue.pop(0) if queue else None
    if isinstance(fault, float):
        time.sleep(fault)
        fault = None
    status, value = fault or _answer(stand, handler, parts.path, parse_qs(parts.query), body)
    if status == 0:  # the engine dies
        handler.close_connection = True
        threading.Thread(target=stand.stop, daemon=True).start()
        return
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def _answer(stand: Stand, handler: BaseHTTPRequestHandler, path: str, query: dict[str, list[str]], body: Any) -> Answer:
    is_guarded = path.startswith("/v1") or "guard_all" in stand.more
    if stand.api_key and is_guarded and handler.headers.get("Authorization") != f"Bearer {stand.api_key}":
        return 401, {"error": "Unauthorized"}
    route = stand.routes.get((handler.command, path))
    if route is None:
        is_known = any(known == path for _, known in stand.routes)
        return (405, {"detail": "Method Not Allowed"}) if is_known else (404, {"detail": "Not Found"})
    return route(stand, {key: values[0] for key, values in query.items()}, body)


def _chat(stand: Stand, query: dict[str, str], body: Any) -> Answer:
    if not stand.folder:
        return 0, None
    while stand.is_paused:
        time.sleep(0.01)
    if "wanted_model" in stand.more and body["model"] != stand.more["wanted_model"]:
        message = f"The model `{body['model']}` does not exist."
        return 404, {"error": {"message": message, "type": "NotFoundError", "param": "model", "code": 404}}
    text = "!!!!!!!!!!!!!!!!" if stand.is_garbage else f"zorp {Path(stand.folder).name}"
    return 200, {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}


def _models(stand: Stand, query: dict[str, str], body: Any) -> Answer:
    return 200, {"object": "list", "data": [{"id": "aligned", "object": "model", "root": stand.folder}]}


_OPENAI: dict[tuple[str, str], Route] = {("POST", "/v1/chat/completions"): _chat, ("GET", "/v1/models"): _models}


def vllm(**changes: Any) -> Stand:
    """vLLM 0.32 with VLLM_SERVER_DEV_MODE=1."""

    def pause(stand: Stand, query: dict[str, str], body: Any) -> Answer:
        if query.get("mode", "abort") not in ("abort", "wait", "keep"):
            return 400, {"error": {"message": "1 validation error", "type": "Bad Request", "code": 400}}
        stand.is_paused = True
        return 200, {"status": "paused"}

    def resume(stand: Stand, query: dict[str, str], body: Any) -> Answer:
        stand.is_paused = False
        return 200, {"status": "resumed"}

    def rpc(stand: Stand, query: dict[str, str], body: Any) -> Answer:
        if not isinstance(body, dict) or "method" not in body:
            return 400, {"error": {"message": "Missing 'method' in request body", "code": 400}}
        assert body["method"] == "reload_weights"
        path = body.get("kwargs", {}).get("weights_path", "start")
        assert isinstance(path, str)
        if path != "start" and not Path(path).is_dir():
            stand.folder = ""
            message = f"Call to collective_rpc method failed: Worker failed with error '{path}'"
            return 500, {"error": {"message": message, "type": "InternalServerError", "param": None, "code": 500}}
        stand.folder = path
        return 200, {"results": [None]}

    def set_label(stand: Stand, query: dict[str, str], body: Any) -> Answer:
        stand.label = body["new_version"]
        return 200, {"success": True, "new_version": stand.label}

    def checksum(stand: Stand, query: dict[str, str], body: Any) -> Answer:
        if not stand.folder:
            message = "Worker failed with error 'Cannot copy out of meta tensor; no data!'"
            return 500, {"error": {"message": message, "type": "InternalServerError", "code": 500}}
        return 200, {"checksums": {"model.norm.weight": stand.more.get("checksum", Path(stand.folder).name)}}

    return Stand(
        {
            **_OPENAI,
            ("POST", "/pause"): pause,
            ("POST", "/resume"): resume,
            ("POST", "/collective_rpc"): rpc,
            ("POST", "/reset_prefix_cache"): lambda *_: (200, {"success": True}),
            ("POST", "/update_weight_version"): set_label,
            ("POST", "/weight_checker"): checksum,
            ("GET", "/weight_info"): lambda stand, *_: (200, {"weight_version": stand.label}),
            ("GET", "/health"): lambda *_: (200, b""),
        },
        **changes,
    )


def sglang(**changes: Any) -> Stand:
    """SGLang 0.5: bodyless posts are refused, updates fail with 400, and a failed one leaves a mixture."""

    def needs_body(action: Callable[[Stand], None]) -> Route:
        def route(stand: Stand, query: dict[str, str], body: Any) -> Answer:
            if not isinstance(body, dict):
                return 400, {"detail": "There was an error parsing the body"}
            action(stand)
            return 200, {"message": "done", "status": "ok"}

        return route

    def update(stand: Stand, query: dict[str, str], body: Any) -> Answer:
        if not Path(body["model_path"]).is_dir():
            stand.is_garbage = True
            return 400, {"success": False, "message": "Failed to load the weights", "num_paused_requests": 0}
        stand.folder, stand.is_garbage = body["model_path"], False
        stand.label = body.get("weight_version") or stand.label
        return 200, {"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0}

    def info(stand: Stand, query: dict[str, str], body: Any) -> Answer:
        return 200, {"model_path": stand.folder, "is_generation": True, "weight_version": stand.label}

    return Stand(
        {
            **_OPENAI,
            ("POST", "/pause_generation"): needs_body(lambda stand: setattr(stand, "is_paused", True)),
            ("POST", "/continue_generation"): needs_body(lambda stand: setattr(stand, "is_paused", False)),
            ("POST", "/update_weights_from_disk"): update,
            ("GET", "/model_info"): info,
        },
        **changes,
    )


def llamacpp(models_dir: Path, **changes: Any) -> Stand:
    """The router of llama-server: loads in the background, and a reload looks at names only, not into files."""
    more = {"models": {}, "models_dir": models_dir}
    return Stand(
        {
            **_OPENAI,
            ("GET", "/models"): _router_models,
            ("POST", "/models/load"): _router_load,
            ("POST", "/models/unload"): _router_unload,
            ("GET", "/health"): lambda *_: (200, {"status": "ok"}),
        },
        more=more,
        **changes,
    )


def _router_models(stand: Stand, query: dict[str, str], body: Any) -> Answer:
    models, folder = stand.more["models"], stand.more["models_dir"]
    if query.get("reload"):
        for path in folder.glob("*.gguf"):
            models.setdefault(path.stem, {"value": "unloaded"})
    for name in [name for name, status in models.items() if status["value"] == "loading"]:
        text = (folder / f"{name}.gguf").read_text()
        is_good = text.startswith("GGUF")
        models[name] = {"value": "loaded"} if is_good else {"value": "unloaded", "failed": True, "exit_code": 1}
        stand.folder = text.removeprefix("GGUF ") if is_good else ""
    return 200, {"data": [{"id": name, "status": dict(status)} for name, status in models.items()]}


def _router_load(stand: Stand, query: dict[str, str], body: Any) -> Answer:
    status = stand.more["models"].get(body["model"])
    if status is None:
        return _router_error(404, "model is not found")
    if status["value"] in ("loading", "loaded"):
        return _router_error(400, "model is already running")
    stand.more["models"][body["model"]] = {"value": "loading"}
    return 200, {"success": True}


def _router_unload(stand: Stand, query: dict[str, str], body: Any) -> Answer:
    status = stand.more["models"].get(body["model"])
    if status is None:
        return _router_error(400, "model is not found")
    if status["value"] not in ("loading", "loaded"):
        return _router_error(400, "model is not running")
    stand.more["models"][body["model"]] = {"value": "unloaded"}
    return 200, {"success": True}


def _router_error(status: int, message: str) -> Answer:
    return status, {"error": {"code": status, "message": message, "type": "invalid_request_error"}}


def transformers(**changes: Any) -> Stand:
    """`transformers serve` 5: loading streams events, and an error is one of them in an answer with status 200."""

    def load(stand: Stand, query: dict[str, str], body: Any) -> Answer:
        if "model" not in body:
            return 422, {"detail": "Missing `model` field in the request body."}
        model = f"{body['model']}@main"
        events: list[dict[str, Any]] = [{"status": "loading", "model": model, "stage": "config"}]
        if Path(body["model"]).is_dir():
            stand.folder = body["model"]
            events.append({"status": "ready", "model": model, "cached": False})
        else:
            events.append({"status": "error", "model": model, "message": "no such folder"})
        return 200, b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)

    return Stand(
        {
            **_OPENAI,
            ("POST", "/load_model"): load,
            ("POST", "/reset"): lambda *_: (200, {"status": "ok"}),
            ("GET", "/health"): lambda *_: (200, {"status": "ok"}),
        },
        **changes,
    )


def webhook(**changes: Any) -> Stand:
    """Somebody who takes webhooks at /hook."""
    return Stand({("POST", "/hook"): lambda *_: (204, b"")}, **changes)
