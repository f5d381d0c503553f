"""What a candidate is measured on, and how its measurements become gate verdicts and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from daemon.config import Config, GateSection, GatesSection
from daemon.config_judge import JudgeSection
from daemon.judging import MODEL_INPUT
from daemon.probes import ProbeFiles, ProbeRow, answered, development_part, gate_part, plain, thin
from daemon.rows import Row
from daemon.workbench import Workbench
from patches.evaluate import NOTHING, Axis, Measurement, Probe, ProbeSet, Tally, measure
from policies.calibration import agreement
from policies.gates import Bounds, GateResult, Share, judge_share, judge_value
from policies.search import Axes

BATCHES, STANDING, OVER_SAFETY, UTILITY = "batches", "standing", "over_safety", "utility"
NEW_BATCH = "new_batch"


@dataclass(frozen=True)
class ProbeSets:
    """The probes of the development part or of the gate part, by name."""

    batches: ProbeSet
    """Held-out rows of every batch so far, grouped by batch."""
    standing: ProbeSet
    over_safety: ProbeSet
    utility: ProbeSet

    def all(self) -> tuple[ProbeSet, ...]:
        """Every set, in a fixed order."""
        return self.batches, self.standing, self.over_safety, self.utility


def gate_sets(batches: Mapping[str, Sequence[Row]], files: ProbeFiles, config: Config) -> ProbeSets:
    """The probes that judge: each batch's gate rows and the files' gate parts."""
    most = config.probes.max_prompts
    return _sets(batches, [gate_part(rows, most) for rows in (files.harm, files.over_safety, files.utility)], most)


def development_sets(batches: Mapping[str, Sequence[Row]], files: ProbeFiles, config: Config) -> ProbeSets:
    """The probes that the coefficient search measures on."""
    most = config.merge.search.max_prompts
    return _sets(
        batches, [development_part(rows, most) for rows in (files.harm, files.over_safety, files.utility)], most
    )


def measure_sets(
    bench: Workbench,
    sets: ProbeSets,
    *,
    model: Any = None,
    with_loss: bool = True,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Measurement:
    """Answers of a model (the current one by default) to every probe, counted.

    Args:
        with_loss: also measure the loss on the utility references.
    """
    rows = sets.utility.probes if with_loss else ()
    references = bench.encode([(probe.messages, probe.reference) for probe in rows if probe.reference])
    return measure(
        bench.generator(model),
        bench.judge,
        sets.all(),
        utility_rows=(bench.runner(model), references) if references else None,
        progress=progress,
    )


def metrics(measured: Measurement) -> dict[str, Any]:
    """The numbers kept with a version; shares in [0, 1], None where nothing was measured."""
    harm, standing = _whole(measured, BATCHES), _whole(measured, STANDING)
    over, utility = _whole(measured, OVER_SAFETY), _whole(measured, UTILITY)
    return {
        "harm_rate": _rate(harm.num_content, harm),
        "standing_harm_rate": _rate(standing.num_content, standing),
        "over_refusal_rate": _rate(over.num_refusals, over),
        "over_safety_right_rate": _rate(over.num_right, over) if over.num_referenced else None,
        "utility": _rate(utility.num_right, utility),
        "degenerate_rate": _rate(*_degenerate(tallies[""] for tallies in measured.tallies.values())),
        "utility_nll": measured.utility_nll,
        "judge": measured.judge,
        "harm_by_batch": {
            group: _rate(tally.num_content, tally) for group, tally in measured.tallies[BATCHES].items() if group
        },
        "standing_harm_by_category": {
            group: _rate(tally.num_content, tally) for group, tally in measured.tallies[STANDING].items() if group
        },
        "utility_by_category": {
            group: _rate(tally.num_right, tally) for group, tally in measured.tallies[UTILITY].items() if group
        },
    }


def judged_by(measured: Measurement, settings: JudgeSection, files: ProbeFiles) -> dict[str, Any]:
    """Who judged, and where it is a model, how far the rules agree with it on the harm of the harm probes.

    Args:
        files: with the digest of the judge's model, where it has a folder.
    """
    found: dict[str, Any] = {"identity": measured.judge, "kind": settings.kind}
    if settings.kind == "rule":
        return found
    found |= {
        "model": settings.model,
        "format": settings.format_name,
        "model_sha256": files.digests.get(MODEL_INPUT, ""),
    }
    return found | {"agreement_with_rules": agreement(*measured.agreement).to_dict()}


def axes(measured: Measurement, touched_fraction: float) -> Axes:
    """The search's view of a measurement; standing harm counts as harm."""
    return axes_of(metrics(measured), touched_fraction)


def axes_of(found: Mapping[str, Any], touched_fraction: float) -> Axes:
    """The same of `metrics`."""
    harms = [found["harm_rate"], found["standing_harm_rate"]]
    known = [harm for harm in harms if harm is not None]
    return Axes(
        harm_rate=sum(known) / len(known) if known else None,
        over_refusal_rate=found["over_refusal_rate"],
        right_rate=found["over_safety_right_rate"],
        utility=found["utility"],
        degenerate_rate=found["degenerate_rate"] or 0.0,
        touched_fraction=touched_fraction,
    )


def counts(measured: Measurement, new_batch: str | None = None) -> dict[str, dict[str, int]]:
    """The counts of every probe set as a whole, as plain values: what the gates' intervals come from.

    Args:
        new_batch: the batch of the round, which is also counted by itself; None when there is none, as in a revert.
    """
    found = {name: asdict(tallies[""]) for name, tallies in measured.tallies.items()}
    if new_batch is not None:
        found[NEW_BATCH] = asdict(measured.tallies[BATCHES].get(_group(new_batch), NOTHING))
    return found


def gate_results(
    candidate: Mapping[str, Mapping[str, int]], numbers: Mapping[str, Mapping[str, Any]], gates: GatesSection
) -> tuple[GateResult, ...]:
    """One verdict a gate.

    Args:
        candidate: its `counts`.
        numbers: `metrics` of the "candidate", and of the "current" version and the "base" on the same probes.
    """
    tallies = {name: Tally(**found) for name, found in candidate.items()}

    def gate(name: str, hits: int, tally: Tally, bounds: GateSection, metric: str) -> GateResult:
        return judge_share(
            name,
            Share(hits, tally.num_prompts),
            _bounds(bounds),
            direction="high" if metric in ("utility", "over_safety_right_rate") else "low",
            current=numbers["current"][metric],
            base=numbers["base"][metric],
        )

    harm, standing = tallies[BATCHES], tallies[STANDING]
    over, utility = tallies[OVER_SAFETY], tallies[UTILITY]
    results = [
        gate("harm", harm.num_content, harm, gates.harm, "harm_rate"),
        gate("over_safety", over.num_refusals, over, gates.over_safety, "over_refusal_rate"),
        gate("utility", utility.num_right, utility, gates.utility, "utility"),
        gate("degenerate", *_degenerate(_apart(tallies)), gates.degenerate, "degenerate_rate"),
        _drift_result(numbers, gates.drift, utility.num_prompts),
    ]
    if over.num_referenced:
        results.insert(2, gate("right", over.num_right, over, gates.right, "over_safety_right_rate"))
    if NEW_BATCH in tallies:
        new = tallies[NEW_BATCH]
        share = Share(new.num_content, new.num_prompts)
        results.insert(0, judge_share("new_harm", share, _bounds(gates.new_harm), direction="low"))
    if standing.num_prompts:
        results.append(gate("standing_harm", standing.num_content, standing, gates.standing_harm, "standing_harm_rate"))
    return tuple(results)


def _drift_result(numbers: Mapping[str, Mapping[str, Any]], bounds: GateSection, num_samples: int) -> GateResult:
    before, after = numbers["base"]["utility_nll"], numbers["candidate"]["utility_nll"]
    drift = None if before is None or after is None else after - before
    return judge_value("drift", drift, _bounds(bounds), num_samples=num_samples, base=before)


def _sets(batches: Mapping[str, Sequence[Row]], parts: Sequence[Sequence[ProbeRow]], most: int) -> ProbeSets:
    each = max(20, most // max(1, len(batches)))
    rows = [
        Probe(plain(row), row.response, _group(name)) for name, batch in batches.items() for row in thin(batch, each)
    ]
    harm, over_safety, utility = parts
    return ProbeSets(
        ProbeSet(BATCHES, "harm", tuple(rows)),
        _file_set(STANDING, "harm", harm),
        _file_set(OVER_SAFETY, "over_safety", over_safety),
        _file_set(UTILITY, "utility", answered(utility)),
    )


def _group(batch: str) -> str:
    """The name that a batch's rows are counted under."""
    return batch[:12]


def _file_set(name: str, axis: Axis, rows: Sequence[ProbeRow]) -> ProbeSet:
    return ProbeSet(name, axis, tuple(Probe(row.messages, row.response, row.category or "other") for row in rows))


def _whole(measured: Measurement, name: str) -> Tally:
    return measured.tallies[name][""]


def _apart(tallies: Mapping[str, Tally]) -> list[Tally]:
    """Of every probe set, each answer once: the new batch is among all batches."""
    return [tally for name, tally in tallies.items() if name != NEW_BATCH]


def _degenerate(tallies: Iterable[Tally]) -> tuple[int, Tally]:
    """Degenerate answers of all probe sets, and how many there were to give."""
    found = list(tallies)
    hits = sum(tally.num_degenerate for tally in found)
    return hits, Tally(sum(tally.num_prompts for tally in found), 0, 0, hits, 0, 0)


def _rate(hits: int, tally: Tally) -> float | None:
    return hits / tally.num_prompts if tally.num_prompts else None


def _bounds(section: GateSection) -> Bounds:
    return Bounds(**{name: getattr(section, name) for name in asdict(Bounds())})
