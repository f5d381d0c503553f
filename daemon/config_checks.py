"""What a service.toml says that cannot be meant, although every value by itself is in its range."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from daemon.config_judge import judge_faults
from daemon.config_serving import serving_faults
from daemon.listening import parse_listen
from state.layout import Layout

if TYPE_CHECKING:
    from daemon.config import Config, GateSection
    from daemon.config_method import ObjectiveSection, SearchSection

ANSWER_ROOM: Final = 16
"""Tokens of [derive] max_length that a prompt must leave to its answer and the chat template."""
_GATES: Final = ("harm", "new_harm", "standing_harm", "over_safety", "right", "utility", "degenerate", "drift")
_UNREAD_OF_DRIFT: Final = ("min", "max_regression", "max_drift")
_SEARCH_LISTS: Final = ("retention_rates", "top_fractions", "alphas", "repair_alphas", "betas")


def faults(config: Config, home: Path) -> list[str]:
    """One sentence a fault: which key, its value, what is allowed; empty when the settings make sense.

    Args:
        home: the folder of the service.toml, which its paths are relative to.
    """
    if found := list(_paths(config)):
        return found  # nothing that looks at the disk may see them
    return [
        *_inbox(config.inbox.path, home),
        *_lengths(config),
        *_gates(config),
        *_search(config),
        *_masks(config),
        *_objectives(config),
        *_web(config),
        *judge_faults(config.judge),
        *serving_faults(config.serving, config.metrics),
    ]


def _inbox(path: str, home: Path) -> Iterator[str]:
    layout, inbox = Layout(home.resolve()), (home / path).resolve()
    for name, own in (("store", layout.root), ("models", layout.models), ("quarantine", layout.quarantine)):
        if inbox.is_relative_to(own) or own.is_relative_to(inbox):
            yield (
                f"inbox.path is {path!r}, and {own} is alignd's own folder `{name}`; name a folder that neither is "
                "one of alignd's, nor lies in one, nor holds one, such as 'inbox'"
            )
            return


def _paths(config: Config) -> Iterator[str]:
    named = {
        "probes.harm": config.probes.harm,
        "probes.over_safety": config.probes.over_safety,
        "probes.utility": config.probes.utility,
        "derive.retain.path": config.derive.retain.path,
    }
    for key, path in named.items():
        if not path.strip():
            yield f"{key} is {path!r}; name a file, which need not exist, or leave the key out"
    for key, path in {
        **named,
        "inbox.path": config.inbox.path,
        "inbox.signers": config.inbox.signers,
        "model.base": config.model.base,
    }.items():
        if "\0" in path:
            yield f"{key} is {path!r}; no name of a file holds a NUL character"


def _lengths(config: Config) -> Iterator[str]:
    if config.derive.max_length <= ANSWER_ROOM:
        yield (
            f"derive.max_length is {config.derive.max_length}; it must be more than {ANSWER_ROOM}, the tokens that a "
            "prompt leaves to its answer"
        )


def _gates(config: Config) -> Iterator[str]:
    for name in _GATES:
        gate: GateSection = getattr(config.gates, name)
        yield from _bounds(f"gates.{name}", gate, is_share=name != "drift")
    for key in _UNREAD_OF_DRIFT:
        value = getattr(config.gates.drift, key)
        if value is not None:
            yield f"gates.drift.{key} is {value:g}, but the drift gate reads only class, max and min_samples; take it out"


def _bounds(key: str, gate: GateSection, *, is_share: bool) -> Iterator[str]:
    for name in ("max", "min", "max_regression", "max_drift"):
        value = getattr(gate, name)
        if value is None:
            continue
        if is_share and not 0 <= value <= 1:
            yield f"{key}.{name} is {value:g}; it is a share and must be in [0, 1] (0.1 means 10 %)"
        elif not math.isfinite(value):
            yield f"{key}.{name} is {value:g}; it must be a finite number"
    if gate.min is not None and gate.max is not None and gate.min > gate.max:
        yield f"{key}.min is {gate.min:g} and {key}.max is {gate.max:g}: nothing can pass; min must be at most max"


def _search(config: Config) -> Iterator[str]:
    search: SearchSection = config.merge.search
    for name in _SEARCH_LISTS:
        values, key = getattr(search, name), f"merge.search.{name}"
        if not values:
            yield f"{key} is empty; it must hold one value at least"
        is_share = name in ("retention_rates", "top_fractions")
        allowed = "above 0 and at most 1: with 0 nothing is kept" if is_share else "finite and 0 or more"
        for value in values:
            if not math.isfinite(value) or value < 0 or (is_share and value == 0):
                yield f"{key} holds {value:g}; each value must be {allowed}"


def _masks(config: Config) -> Iterator[str]:
    merge, backend, share = config.merge, config.derive.backend, config.derive.sparse_fraction
    if merge.mask == "difference" and backend == "sparse" and min(merge.search.top_fractions, default=0.0) >= share:
        yield (
            f"merge.mask is 'difference' and derive.backend 'sparse': both patches change the same {share:g} of each matrix, so "
            f"top sets of {min(merge.search.top_fractions):g} hold nearly the same entries; name "
            f"merge.search.top_fractions below {share:g}, or set derive.backend = 'full'"
        )
    if 1.0 not in merge.search.top_fractions:
        return
    if merge.mask == "difference":
        yield (
            "merge.search.top_fractions holds 1 and merge.mask is 'difference': both top sets are then everything and their "
            "differences empty; name fractions below 1, or set merge.mask = 'joint'"
        )
    if merge.accumulate != "off" and backend != "sparse":
        yield (
            f"merge.search.top_fractions holds 1, merge.accumulate is {merge.accumulate!r} and derive.backend is "
            f"{backend!r}: the first round would claim every entry; name fractions below 1, or set derive.backend = 'sparse'"
        )


def _objectives(config: Config) -> Iterator[str]:
    safety, over = config.derive.safety, config.derive.over_safety
    if safety.objective == "descent":
        yield (
            "derive.safety.objective is 'descent', which learns the batch instead of forgetting it; "
            "allowed: ascent, npo, simnpo"
        )
    if over.objective != "descent":
        yield (
            f"derive.over_safety.objective is {over.objective!r}, which forgets the batch, so that nothing is loosened; "
            "allowed: descent"
        )
    for key in ("refusal_weight", "recovery_weight"):
        yield from _unread("derive.over_safety", over, key, "only [derive.safety] has a use for it")


def _web(config: Config) -> Iterator[str]:
    try:
        parse_listen(config.web.listen)
    except ValueError as err:
        yield f"web.listen is {config.web.listen!r}: {err}"
    for host in config.web.hosts:
        if not host or any(char in host for char in "/:@ "):
            yield f"web.hosts holds {host!r}; each value is a bare name, such as 'align.example.org', without scheme and port"


def _unread(section: str, objective: ObjectiveSection, name: str, why: str) -> Iterator[str]:
    value = getattr(objective, name)
    if value:
        yield f"{section}.{name} is {value:g} and would do nothing: {why}; take it out"
