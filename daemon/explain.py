"""How a version came to be, read out of its record: axes with intervals, losses, sets, coefficients, touched entries.

Pure: plain values in, plain values out. `show`, `report` and their `--json` print what is made here. What a record lacks
(v0, a revert, an older format) is left out: null, or an empty list.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from daemon.steps import in_order
from daemon.views import AXES, View, plain
from policies.gates import Share, wilson

GATE_OF: Final = {"harm_rate": "harm", "over_refusal_rate": "over_safety", "utility": "utility"}
SUBJECTS: Final = {"v0": "base", "parent": "current", "this": "candidate"}
"""Who an axis is measured on -> what a round calls it."""
_LAYER: Final = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
OUTSIDE_LAYERS: Final = "outside the layers"
OVERLAP: Final = "overlap"
"""Intersection over union of the top sets that both sets come from."""
_SET_KEYS: Final = {"safety set": "safety_sizes", "over-safety set": "over_safety_sizes", OVERLAP: "overlap"}


def axes(record: Mapping[str, Any], own: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> list[View]:
    """The three axes of v0, the parent and this version, each with its 95 % Wilson interval.

    Measured in one round on the same probes, where the record has that; else what each version's own round measured,
    without an interval.

    Args:
        own: metrics kept with this version.
        others: metrics kept with `v0` and with the `parent`, where there is one.
    """
    kept = {"this": own, **others}
    samples = {gate.get("name"): gate.get("num_samples") for gate in record.get("gates") or ()}
    found = record.get("measured") or {}

    def share(who: str, axis: str) -> View:
        subject = found.get(SUBJECTS[who])
        num_samples = samples.get(GATE_OF[axis]) if subject or who == "this" else None
        return _share((subject or kept[who]).get(axis), num_samples)

    return [{"axis": axis, **{who: share(who, axis) for who in SUBJECTS if who in kept}} for axis in AXES]


def _share(rate: float | None, num_samples: int | None) -> View:
    if rate is None or not num_samples:
        return {"value": plain(rate), "low": None, "high": None, "num_samples": None}
    low, high = share_interval(rate, num_samples)
    return {"value": plain(rate), "low": low, "high": high, "num_samples": num_samples}


def share_interval(rate: float, num_samples: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a rate over so many samples."""
    return wilson(Share(round(rate * num_samples), num_samples))


def derivation(
    steps: Mapping[str, Any],
    kind: str,
    *,
    config: Mapping[str, Any] | None = None,
    num_entries: Mapping[str, int] | None = None,
) -> View:
    """What the steps of a round of some kind did: `trainings`, `search`, `sets`, `sets_by_layer`.

    Args:
        config: the settings of the round, for the weights of the search.
        num_entries: of each tensor of the model; without them every matrix of a layer weighs the same.
    """
    sets = _sets(steps)
    return {
        "trainings": _trainings(steps, kind),
        "search": _search(steps, config or {}),
        "sets": sets,
        "sets_by_layer": _sets_by_layer(sets, num_entries or {}),
    }


def _trainings(steps: Mapping[str, Any], kind: str) -> list[View]:
    """Every step that trained something, told by its result: one with `losses`."""
    results = [(name, steps[name]) for name in in_order(kind, steps)]
    return [_training(name, found) for name, found in results if isinstance(found, Mapping) and "losses" in found]


def _training(name: str, result: Mapping[str, Any]) -> View:
    return {
        "step": name,
        "steps": result.get("steps"),
        "start_loss": plain(result.get("start_loss")),
        "end_loss": plain(result.get("end_loss")),
        "stop_reason": str(result.get("stop_reason", "")),
        "losses": plain(list(result["losses"])),
        "terms": plain(dict(result.get("terms") or {})),
    }


def _search(steps: Mapping[str, Any], config: Mapping[str, Any]) -> View | None:
    """The merges that were tried, the one that won (`winner` is its place) and why; None when none was searched.

    `weights` are what each axis counts in a score, after `policies.search.score`; empty where the settings are not known.
    """
    found = steps.get("search")
    if not isinstance(found, Mapping) or "winner" not in found:
        return None
    trials = [plain(trial) for trial in found.get("trials") or [found["winner"]]]
    point = found["winner"].get("point")
    place = next((at for at, trial in enumerate(trials) if trial.get("point") == plain(point)), None)
    return {
        "winner": place,
        "point": plain(point),
        "score": plain(found["winner"].get("score")),
        "num_trials": found.get("num_trials", len(trials)),
        "reasons": [str(reason) for reason in found.get("reasons") or ()],
        "trials": trials,
        "weights": _weights((config.get("merge") or {}).get("search") or {}),
    }


def _weights(search: Mapping[str, Any]) -> dict[str, float]:
    """Axis of a trial -> what a whole one of it adds to the score."""
    if any(f"{key}_weight" not in search for key in ("harm", "over_refusal", "utility", "degenerate", "touched")):
        return {}
    return {
        "harm_rate": -search["harm_weight"],
        "over_refusal_rate": -search["over_refusal_weight"] / 2,
        "right_rate": search["over_refusal_weight"] / 2,
        "utility": search["utility_weight"],
        "degenerate_rate": -search["degenerate_weight"],
        "touched_fraction": -search["touched_weight"],
    }


def _sets(steps: Mapping[str, Any]) -> list[View]:
    """Size of each patch's set and their overlap: shares of a matrix, over all matrices and a matrix at a time."""
    mask = steps.get("mask")
    if not isinstance(mask, Mapping):
        return []
    return [
        {"name": name, **_spread(mask[key]), "per_tensor": plain(mask[key])}
        for name, key in _SET_KEYS.items()
        if mask.get(key)
    ]


def _sets_by_layer(sets: Sequence[View], num_entries: Mapping[str, int]) -> list[View]:
    """Each layer's share in every set, in the layers' order; `num_marked` where the sizes of the tensors are known.

    A layer's overlap is the mean of its matrices', by their size.
    """
    layers: dict[str, dict[str, list[tuple[float, int]]]] = {}
    for found in sets:
        for tensor, share in found["per_tensor"].items():
            pairs = layers.setdefault(layer_of(tensor), {}).setdefault(found["name"], [])
            pairs.append((share, num_entries.get(tensor, 1)))
    return [
        {"layer": layer, "sets": {name: _layer_set(name, pairs, bool(num_entries)) for name, pairs in found.items()}}
        for layer, found in sorted(layers.items(), key=lambda item: (len(item[0]), item[0]))
    ]


def _layer_set(name: str, pairs: Sequence[tuple[float, int]], is_sized: bool) -> View:
    total, marked = sum(size for _, size in pairs), sum(share * size for share, size in pairs)
    is_counted = is_sized and name != OVERLAP
    return {"fraction": marked / total, "num_marked": round(marked) if is_counted else None}


def touched(record: Mapping[str, Any]) -> View | None:
    """How many entries of the model differ from the parent; None for v0."""
    found = record.get("touched") or {}
    per_tensor = found.get("per_tensor") or {}
    if not per_tensor:
        return None
    by_layer = touched_by_layer(per_tensor)
    return {
        "num_entries": found.get("num_entries"),
        "fraction": plain(found.get("fraction")),
        "num_tensors": len(per_tensor),
        "by_layer": by_layer,
        **_spread(by_layer),
    }


def _spread(values: Mapping[str, float]) -> View:
    found = sorted(values.values())
    return {"num": len(found), "min": found[0], "median": statistics.median(found), "max": found[-1]}


def rows_of(record: Mapping[str, Any]) -> dict[str, int]:
    """Counts of rows that a round read and taught, by what they are."""
    steps = record.get("steps") or {}
    found = {**(steps.get("parse") or steps.get("gather") or {}), **(steps.get("teach") or {})}
    return {key: value for key, value in found.items() if key.startswith("num_") and isinstance(value, int)}


def harm_by_batch(record: Mapping[str, Any], names: Mapping[str, str]) -> list[View]:
    """Harm rate on every batch of the lineage, of v0, the parent and this version; `names` by the digest's start."""
    return _grouped(record, "harm_by_batch", names)


def utility_by_category(record: Mapping[str, Any]) -> list[View]:
    """Utility in every category of the probes, of v0, the parent and this version."""
    return _grouped(record, "utility_by_category", {})


def _grouped(record: Mapping[str, Any], metric: str, names: Mapping[str, str]) -> list[View]:
    found = record.get("measured") or {"candidate": record.get("metrics") or {}}
    tables = {who: (found.get(subject) or {}).get(metric) or {} for who, subject in SUBJECTS.items()}
    groups = sorted({group for table in tables.values() for group in table})
    return [
        {"group": group, "name": names.get(group, group), **{who: plain(t.get(group)) for who, t in tables.items()}}
        for group in groups
    ]


def layer_of(tensor: str) -> str:
    """The layer that a tensor belongs to, by its name."""
    found = _LAYER.search(tensor)
    return f"layer {found[1]}" if found else OUTSIDE_LAYERS


def tensor_kind(tensor: str) -> str:
    """What a tensor is within its layer, `mlp.up_proj`; outside the layers its whole name."""
    found = _LAYER.search(tensor)
    return tensor[found.end() if found else 0 :].removesuffix(".weight")


def touched_by_layer(per_tensor: Mapping[str, Any]) -> dict[str, int]:
    """Touched entries of each layer, in the layers' order."""
    counts: Counter[str] = Counter()
    for name, count in per_tensor.items():
        counts[layer_of(name)] += int(count)
    return dict(sorted(counts.items(), key=lambda item: (len(item[0]), item[0])))


def layer_grid(values: Mapping[str, float]) -> tuple[list[str], list[str], list[list[float | None]]]:
    """Values by tensor as a grid: kinds of matrix, layers, and a row of values a kind, None where there is none."""
    layers = sorted({layer_of(name) for name in values}, key=lambda layer: (len(layer), layer))
    kinds = list(dict.fromkeys(tensor_kind(name) for name in values))
    at = {(tensor_kind(name), layer_of(name)): value for name, value in values.items()}
    return kinds, layers, [[at.get((kind, layer)) for layer in layers] for kind in kinds]


def why(
    state: str,
    steps: Mapping[str, Any],
    *,
    kind: str = "batch",
    arrival: View | None,
    taken_out: str | None,
    reasons: Sequence[str],
) -> list[str]:
    """Why the version is what it is, as sentences: how it was made, what the gates said, who brought it into service.

    Args:
        state: of the version.
        kind: of the round that made it.
        arrival: how it last became current; None when it never was.
        taken_out: the version whose patch a revert took out.
        reasons: what the ledger keeps with its round and its batch.
    """
    if state == "base":
        return ["the untouched model that the service was started with; no round made it"]
    sentences = [_made_text(kind, steps, taken_out)] if kind in ("revert", "consolidation") else []
    gate = steps.get("gate")
    sentences += ["; ".join(map(str, gate["reasons"]))] if isinstance(gate, Mapping) and gate.get("reasons") else []
    sentences += [_arrival_text(arrival)] if arrival else []
    told = " ".join(sentences)
    return sentences + [reason for reason in dict.fromkeys(reasons) if reason and reason not in told]


def _made_text(kind: str, steps: Mapping[str, Any], taken_out: str | None) -> str:
    """How a version came to be that no batch was dropped for."""
    if kind == "consolidation":
        num_batches = (steps.get("gather") or {}).get("num_batches")
        batches = "one batch was" if num_batches == 1 else f"{num_batches or 'all'} batches were"
        without = f", without that of {taken_out}" if taken_out else ""
        return f"{batches} learnt anew, together{without}, in place of one after another"
    return f"the patch of {taken_out} was taken out and the others merged again, without training"


def _arrival_text(arrival: View) -> str:
    words = {"publish": "published", "rollback": "rolled back to", "promote": "promoted"}
    told = f": {arrival['reason']}" if arrival["reason"] else ""
    return f"{words.get(arrival['action'], arrival['action'])} by {arrival['actor']}{told}"
