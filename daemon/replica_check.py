"""Whether a replica serves what it was told to: its label, its names, its checksum, what it answers to golden prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from daemon.config_serving import ServingSection, filled
from daemon.engines import Engine, EngineError, Offer, Surroundings, Vllm, client_of, poll
from daemon.engines_local import run_program
from daemon.http_calls import CallError, Client
from policies.handover import golden_fault

_QUICK_S: Final = 30.0
_ANSWER_S: Final = 60.0
_MAX_GOLDEN: Final = 64
_PROMPT_KEYS: Final = ("prompt", "messages")


@dataclass(frozen=True)
class Golden:
    """One golden prompt."""

    messages: list[dict[str, str]]
    expect: str
    never: str


def verify(
    replica: ServingSection, engine: Engine, offer: Offer, around: Surroundings, *, checksums: Mapping[str, str]
) -> str:
    """Returns once the replica serves the version; what takes time may take `verify.timeout_s`.

    Args:
        checksums: version name -> what its weights' checksum was when this replica first served it.
    Returns:
        The checksum now; empty where none is asked for.
    Raises:
        EngineError: it does not, and why, without a word of any prompt or answer.
    """
    last: list[str] = []

    def holds() -> bool:
        last.clear()
        try:
            fault = _fault(replica, engine, offer, around)
        except CallError as err:
            if not err.is_passing:
                raise EngineError(str(err)) from err
            fault = str(err)
        if fault:
            last.append(fault)
        return not fault

    if not poll(around, replica.verify.timeout_s, holds):
        raise EngineError(f"{last[0]} (verify.timeout_s is {replica.verify.timeout_s:g})")
    return _checksum(replica, engine, offer, checksums)


def _fault(replica: ServingSection, engine: Engine, offer: Offer, around: Surroundings) -> str:
    label = engine.label()
    if label is not None and label != offer.version:
        return f"it says that it serves {label} and not {offer.version}"
    check = replica.verify
    if check.command:
        printed = run_program(check.command, {"ALIGND_REPLICA": replica.name}, around, timeout_s=_ANSWER_S).split()
        said = printed[0] if printed else "nothing"
        if said != offer.version:
            return f"{check.command[0]} says {said[:64]!r} and not {offer.version}"
    if not (check.served_model or check.golden):
        return ""
    client = client_of(replica, around, check.url)
    names = _served_names(client) if check.served_model or not check.model else []
    if check.served_model and check.served_model not in names:
        return f"GET /v1/models does not list {check.served_model}"
    if not check.golden:
        return ""
    path = filled(replica.path, path=str(offer.folder), version=offer.version)
    model = filled(check.model, path=path, version=offer.version) or (names[0] if names else "")
    return _golden_fault(client, read_golden(around.home / check.golden), model, check.max_tokens)


def _served_names(client: Client) -> list[str]:
    listed = client.get("/v1/models", timeout_s=_QUICK_S).json()
    models = listed.get("data") if isinstance(listed, dict) else None
    return [str(m["id"]) for m in models or () if isinstance(m, dict) and "id" in m]


def _golden_fault(client: Client, prompts: list[Golden], model: str, max_tokens: int) -> str:
    for number, golden in enumerate(prompts, 1):
        body = {"model": model, "messages": golden.messages, "temperature": 0, "max_tokens": max_tokens}
        fault = golden_fault(_answer(client, body), expect=golden.expect, never=golden.never)
        if fault:
            return f"golden prompt {number} of {len(prompts)}: {fault}"
    return ""


def _answer(client: Client, body: dict[str, Any]) -> str:
    try:
        said = client.post("/v1/chat/completions", body, timeout_s=_ANSWER_S).json()
    except CallError as err:  # its own words may repeat the prompt
        status = f"answered {err.status}" if err.status else "failed"
        raise CallError(f"POST /v1/chat/completions {status}", status=err.status, reached=err.reached) from None
    try:
        content = said["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return ""
    return content if isinstance(content, str) else ""


def _checksum(replica: ServingSection, engine: Engine, offer: Offer, known: Mapping[str, str]) -> str:
    if not (replica.verify.checksum and isinstance(engine, Vllm)):
        return ""
    found = engine.checksum()
    if known.get(offer.version, found) != found:
        raise EngineError(f"its weights are not those that it had when it first served {offer.version}")
    return found


def read_golden(path: Path) -> list[Golden]:
    """The golden prompts of a file. Raises EngineError, which repeats none of them."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise EngineError(f"{path} cannot be read: {err}", is_untouched=True) from err
    found = list(_golden(path, lines))
    if not found or len(found) > _MAX_GOLDEN:
        raise EngineError(f"{path} holds {len(found)} prompts; allowed: 1 to {_MAX_GOLDEN}", is_untouched=True)
    return found


def _golden(path: Path, lines: list[str]) -> Iterator[Golden]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
            texts = [row.get("expect", ""), row.get("never", ""), *(m["content"] for m in messages)]
            if not all(isinstance(text, str) for text in texts):
                raise ValueError("a text is no string")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            words = f'{path}:{number} is no {{"prompt", "expect"?, "never"?}}'
            raise EngineError(words, is_untouched=True) from None
        yield Golden(messages, texts[0], texts[1])
