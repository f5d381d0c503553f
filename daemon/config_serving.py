"""The part of service.toml that says who serves the model and who watches the service: [[serving]], [handover], [metrics].

No secret stands in the file: keys are read from files that it names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, Literal
from urllib.parse import urlsplit

from daemon.config_base import Positive, SomeSeconds, Table

Kind = Literal["vllm", "sglang", "llamacpp", "transformers", "command", "webhook", "systemd"]

PLACEHOLDERS: Final = ("path", "version")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.@-]{1,255}\.service")
_PLACEHOLDER: Final = re.compile(r"\{(\w*)\}")
_PAUSES: Final = {"vllm": ("wait", "abort", "keep"), "sglang": ("retract", "abort")}
_NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "vllm": ("url",),
    "sglang": ("url",),
    "llamacpp": ("url", "models_dir", "model", "convert"),
    "transformers": ("url",),
    "command": ("command",),
    "webhook": ("url", "secret_file"),
    "systemd": ("unit",),
}
"""What a replica of each kind cannot do without."""
_ONLY_FOR: Final[dict[str, tuple[str, ...]]] = {
    "command": ("command",),
    "unit": ("systemd",),
    "secret_file": ("webhook",),
    "models_dir": ("llamacpp",),
    "convert": ("llamacpp",),
    "link": ("command", "systemd", "webhook"),
    "pause": ("vllm", "sglang"),
}
"""Keys that other kinds would not read."""


class VerifySection(Table, frozen=True):
    """How it is told that a replica serves what it was told to; all that is set must hold."""

    url: str = ""
    """Where it is asked; without it the replica's own `url`."""
    served_model: str = ""
    """Name that GET /v1/models must list."""
    golden: str = ""
    """JSON Lines of {"prompt", "expect"?, "never"?}, answered through POST /v1/chat/completions with temperature 0."""
    model: str = ""
    """Model that golden prompts name; {path} and {version} are filled in. Without it the first of GET /v1/models."""
    max_tokens: Positive = 64
    """Length of an answer to a golden prompt, in tokens."""
    command: tuple[str, ...] = ()
    """Program that prints the version that is served, such as v3."""
    checksum: bool = False
    """vllm: its checksum of a version's weights must be the one that was seen when a replica first served it."""
    timeout_s: SomeSeconds = 60.0
    """How long a replica may take until all of it holds."""


class ServingSection(Table, frozen=True):
    """One replica that is told of each version that comes into service."""

    name: str
    """What the replica is called in `serving`, in metrics and in logs."""
    kind: Kind
    """How it is told."""
    url: str = ""
    """Of an HTTP engine, without /v1; of a webhook the whole address."""
    api_key_file: str = ""
    """File with the bearer token that the engine wants."""
    path: str = "{path}"
    """What the engine is told as the model's folder; another one where it sees the folder elsewhere: "/models/{version}"."""
    link: str = ""
    """A link that is pointed at the version's folder first, for engines that read one at their start."""
    pause: str = ""
    """vllm: wait (default) | abort | keep; sglang: retract (default) | abort: what becomes of requests meanwhile."""
    command: tuple[str, ...] = ()
    """command: the program and its arguments; {path} and {version} are filled in."""
    unit: str = ""
    """systemd: the unit that is restarted."""
    secret_file: str = ""
    """File with the key that a webhook is signed with."""
    models_dir: str = ""
    """llamacpp: the router's --models-dir."""
    model: str = ""
    """llamacpp: the model's name there, without .gguf."""
    convert: tuple[str, ...] = ()
    """llamacpp: program that makes a GGUF file {out} of the folder {path}."""
    timeout_s: SomeSeconds = 600.0
    """How long the engine may take to load a version."""
    verify: VerifySection = VerifySection()


class HandoverSection(Table, frozen=True):
    """How replicas are told."""

    parallel: Positive = 1
    """Replicas that are told at once, so that the others go on serving; after a rollback all are."""
    attempts: Positive = 3
    """Failures that may have changed a replica, after which it is left with the old version."""
    retry_s: SomeSeconds = 10.0
    """Wait after the first failure; it doubles with each further one."""
    max_retry_s: SomeSeconds = 600.0
    """The longest such wait."""
    check_s: SomeSeconds = 60.0
    """How often a replica that is in sync is looked at."""


class MetricsSection(Table, frozen=True):
    """Where the metrics of the service can be read."""

    listen: str = ""
    """Address of the Prometheus endpoint, such as "127.0.0.1:9464", or a port alone for this machine; "" = none."""
    textfile: str = ""
    """File that is replaced with the same text, for node_exporter's textfile collector; its name ends in .prom."""
    every_s: SomeSeconds = 15.0
    """How often the file is written."""


def address(listen: str) -> tuple[str, int]:
    """Host and port of the metrics' `listen`; a port alone is this machine's, as the page's is. Raises ValueError."""
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{listen!r} is no HOST:PORT, and no PORT alone")
    return host or "127.0.0.1", int(port)


def serving_faults(serving: Sequence[ServingSection], metrics: MetricsSection) -> Iterator[str]:
    """One sentence for each thing in these tables that cannot be meant."""
    for name, count in Counter(replica.name for replica in serving).items():
        if count > 1:
            yield f"serving.name {name!r} stands {count} times; each replica has a name of its own"
    for replica in serving:
        for fault in _replica(replica):
            yield f"serving {replica.name!r}: {fault}"
    if metrics.listen:
        try:
            address(metrics.listen)
        except ValueError as err:
            yield f"metrics.listen: {err}, such as 127.0.0.1:9464"
    if metrics.textfile and not metrics.textfile.endswith(".prom"):
        yield f"metrics.textfile is {metrics.textfile!r}; node_exporter reads only names that end in .prom"


def _replica(replica: ServingSection) -> Iterator[str]:
    if _NAME.fullmatch(replica.name) is None:
        yield "a name has letters, digits and . _ -, 63 at most"
    for key in _NEEDS[replica.kind]:
        if not getattr(replica, key):
            yield f"kind {replica.kind!r} needs `{key}`"
    for key, kinds in _ONLY_FOR.items():
        if getattr(replica, key) and replica.kind not in kinds:
            yield f"`{key}` would do nothing for kind {replica.kind!r}; it is for {', '.join(kinds)}"
    pauses = _PAUSES.get(replica.kind, ())
    if replica.pause and pauses and replica.pause not in pauses:
        yield f"pause is {replica.pause!r}; allowed: {', '.join(pauses)}"
    if replica.unit and _UNIT.fullmatch(replica.unit) is None:
        yield f"unit is {replica.unit!r}; name a unit such as vllm.service"
    if replica.model and (_NAME.fullmatch(replica.model) is None or replica.model.endswith(".gguf")):
        yield f"model is {replica.model!r}; it is a file's name in models_dir without .gguf"
    yield from _urls(replica)
    yield from _templates(replica)
    yield from _verify(replica)


def is_http_address(url: str) -> bool:
    """Whether requests can be sent there: http or https, a host, and nothing that a header or a log would break on."""
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    return is_whole and url.isprintable() and " " not in url


def holds_secret(url: str) -> bool:
    """Whether a user or password stands in an address, which is shown in messages."""
    parts = urlsplit(url)
    return parts.username is not None or parts.password is not None


def _urls(replica: ServingSection) -> Iterator[str]:
    for key, url in (("url", replica.url), ("verify.url", replica.verify.url)):
        if not url:
            continue
        if not is_http_address(url):
            yield f"{key} is {url!r}; name an address such as http://127.0.0.1:8000"
        elif holds_secret(url):
            yield f"{key} holds a user or password; put a token into a file and name it in `api_key_file`"


def _templates(replica: ServingSection) -> Iterator[str]:
    filled = {"path": replica.path, "verify.model": replica.verify.model}
    filled |= {f"command[{i}]": word for i, word in enumerate(replica.command)}
    allowed = dict.fromkeys(filled, PLACEHOLDERS)
    filled |= {f"convert[{i}]": word for i, word in enumerate(replica.convert)}
    for key, text in filled.items():
        known = allowed.get(key, (*PLACEHOLDERS, "out"))
        for found in _PLACEHOLDER.findall(text):
            if found not in known:
                yield f"{key} holds {{{found}}}; allowed: {', '.join(f'{{{name}}}' for name in known)}"
    if replica.convert and not any("{out}" in word for word in replica.convert):
        yield "convert lacks {out}, the file to make"


def _verify(replica: ServingSection) -> Iterator[str]:
    verify = replica.verify
    asks = [key for key in ("served_model", "golden") if getattr(verify, key)]
    if asks and not (verify.url or (replica.url and replica.kind != "webhook")):
        yield f"verify.{asks[0]} needs verify.url, where the engine is asked"
    if verify.checksum and replica.kind != "vllm":
        yield f"verify.checksum would do nothing for kind {replica.kind!r}; it is for vllm"


def filled(template: str, **values: str) -> str:
    """A setting with its placeholders filled in; what is not among ``values`` stays as it is."""
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), template)
