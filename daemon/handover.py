"""One errand to one replica: tell it of a version and see that it serves it, or look what it serves."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from daemon.config_serving import ServingSection
from daemon.engines import (
    CancelledError,
    Engine,
    EngineError,
    Offer,
    Sglang,
    Surroundings,
    Transformers,
    Vllm,
    client_of,
)
from daemon.engines_local import LlamaCpp, Program, SystemdUnit, Webhook, run_program
from daemon.http_calls import CallError
from daemon.replica_check import read_golden, verify
from policies.handover import Outcome, Replica, Step
from state import lock

_QUICK_S: Final = 30.0
_VERSION: Final = re.compile(r"v([0-9]{1,9})")


@dataclass(frozen=True)
class Attempt:
    """What came of an errand; `outcome` is None where it was broken off."""

    outcome: Outcome | None
    checksums: dict[str, str] = field(default_factory=dict)


def engine_of(replica: ServingSection, around: Surroundings) -> Engine:
    """How this replica is spoken to. Raises EngineError."""
    match replica.kind:
        case "vllm":
            return Vllm(replica, around)
        case "sglang":
            return Sglang(replica, around)
        case "transformers":
            return Transformers(replica, around)
        case "llamacpp":
            return LlamaCpp(replica, around)
        case "command":
            return Program(replica, around)
        case "webhook":
            return Webhook(replica, around)
        case "systemd":
            return SystemdUnit(replica, around)


def run(
    step: Step, known: Replica, replica: ServingSection, offer: Offer, around: Surroundings, *, may_skip: bool
) -> Attempt:
    """Does a step; returns when it is done, which may take minutes. Never raises what an engine does.

    Args:
        may_skip: an engine that has the version's label already need not load it again.
    """
    try:
        engine = engine_of(replica, around)
        if step.kind == "check":
            return Attempt(_look(known, replica, engine, around))
        return _tell(known, replica, engine, offer, around, may_skip=may_skip)
    except CancelledError:
        return Attempt(None)
    except EngineError as err:
        return Attempt(Outcome("untouched" if err.is_untouched else "spoilt", error=str(err)))


def _tell(
    known: Replica, replica: ServingSection, engine: Engine, offer: Offer, around: Surroundings, *, may_skip: bool
) -> Attempt:
    if replica.verify.golden:
        read_golden(around.home / replica.verify.golden)  # what cannot be checked afterwards is not begun
    with lock.kept(offer.folder) as is_there:
        if not is_there:
            raise EngineError(f"{offer.folder} is gone", is_untouched=True)
        if not (may_skip and _has_label(engine, offer.version)):
            engine.send(offer)
        try:
            checksum = verify(replica, engine, offer, around, checksums=known.checksums)
        except CancelledError:
            raise
        except EngineError as err:
            raise EngineError(str(err)) from err  # it was told: whatever it serves now, it is not known
    learnt = {offer.version: checksum} if checksum else {}
    return Attempt(Outcome("serves", _number(offer.version)), learnt)


def _has_label(engine: Engine, version: str) -> bool:
    try:
        return engine.label() == version
    except CallError as err:
        raise EngineError(str(err), is_untouched=True) from err


def _look(known: Replica, replica: ServingSection, engine: Engine, around: Surroundings) -> Outcome:
    try:
        label = engine.label()
        if label is None and replica.verify.command:
            printed = run_program(
                replica.verify.command, {"ALIGND_REPLICA": replica.name}, around, timeout_s=_QUICK_S, is_untouched=True
            ).split()
            label = printed[0] if printed else ""
        elif label is None and replica.verify.url:
            client_of(replica, around, replica.verify.url).get("/v1/models", timeout_s=_QUICK_S)
    except CallError as err:
        return Outcome("untouched", error=str(err))
    return Outcome("serves", known.observed if label is None else _number(label))


def _number(label: str) -> int | None:
    found = _VERSION.fullmatch(label)
    return int(found[1]) if found else None
