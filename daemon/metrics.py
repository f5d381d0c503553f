"""What the service can be measured by, in Prometheus' text format: names, meanings, and the text itself.

No label holds anything that came with data: no name of a batch or file, no prompt, no answer.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
CLAIM_BUCKETS_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

Labels = Mapping[str, str]
Samples = Mapping[str, Sequence[tuple[Labels, float]]]
"""Values by the name of their metric."""


@dataclass(frozen=True)
class Metric:
    """One metric: its name, its kind, what it means, and its labels."""

    name: str
    kind: Literal["gauge", "counter", "summary", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


METRICS: Final = (
    Metric("alignd_build_info", "gauge", "Always 1; the label says which alignd this is.", ("version",)),
    Metric(
        "alignd_ledger_readable",
        "gauge",
        "1 while the ledger can be read; where it is 0 all that stands in it is missing.",
    ),
    Metric("alignd_current_version", "gauge", "Number of the version in service: 3 is v3."),
    Metric("alignd_current_since_timestamp_seconds", "gauge", "When the version in service came into service."),
    Metric("alignd_versions", "gauge", "Versions by state.", ("state",)),
    Metric("alignd_rounds", "gauge", "Rounds by what became of them.", ("state",)),
    Metric("alignd_batches", "gauge", "Batches by state.", ("state",)),
    Metric("alignd_queue_length", "gauge", "Batches, reverts and consolidations that wait for a round."),
    Metric("alignd_inbox_waiting", "gauge", "Drops in the inbox that are not taken yet."),
    Metric("alignd_held", "gauge", "1 while nothing is published until `alignd resume`."),
    Metric("alignd_paused", "gauge", "1 while no round starts until `alignd resume`."),
    Metric("alignd_problems", "gauge", "What a person should look at: messages on the status of the service."),
    Metric("alignd_store_findings", "gauge", "What the last check of every stored byte found wrong."),
    Metric("alignd_worker_running", "gauge", "1 while a worker of this kind runs.", ("kind",)),
    Metric(
        "alignd_round_step_duration_seconds", "summary", "How long steps of rounds took since the start.", ("step",)
    ),
    Metric("alignd_round_step_last_duration_seconds", "gauge", "How long a step of the latest round took.", ("step",)),
    Metric(
        "alignd_axis_ratio", "gauge", "The axes of the version in service, as they were measured for it.", ("axis",)
    ),
    Metric("alignd_gate_value", "gauge", "What a gate measured in the latest round that was measured.", ("gate",)),
    Metric("alignd_gate_passed", "gauge", "1 where that gate passed; 0 also where it was inconclusive.", ("gate",)),
    Metric("alignd_serving_replicas", "gauge", "Replicas by state.", ("state",)),
    Metric("alignd_serving_replica_in_sync", "gauge", "1 where a replica serves the version in service.", ("replica",)),
    Metric(
        "alignd_serving_replica_version",
        "gauge",
        "Number of the version that it serves; -1: not known.",
        ("replica",),
    ),
    Metric("alignd_serving_replica_failures", "gauge", "Hand-overs in a row that failed.", ("replica",)),
    Metric("alignd_claim_latency_seconds", "histogram", "From the moment a drop had settled until it was claimed."),
    Metric("alignd_disk_free_bytes", "gauge", "Free space where the store is."),
    Metric("process_resident_memory_bytes", "gauge", "Resident memory of the supervisor."),
    Metric("process_cpu_seconds_total", "counter", "Processor time of the supervisor, without its workers."),
    Metric("process_start_time_seconds", "gauge", "When the supervisor started, since the epoch."),
)
"""Every metric there is; a test holds the dashboard and the documentation to this list."""


@dataclass
class Tally:
    """What is counted since the start of the service, because the ledger does not keep it."""

    step_sum_s: dict[str, float] = field(default_factory=dict)
    step_count: dict[str, int] = field(default_factory=dict)
    claim_counts: list[int] = field(default_factory=lambda: [0] * (len(CLAIM_BUCKETS_S) + 1))
    """Claims by bucket, each by itself; the last one is over all limits."""
    claim_sum_s: float = 0.0

    def step(self, name: str, duration_s: float) -> None:
        """Counts a step of a round that ended."""
        self.step_sum_s[name] = self.step_sum_s.get(name, 0.0) + duration_s
        self.step_count[name] = self.step_count.get(name, 0) + 1

    def claim(self, latency_s: float) -> None:
        """Counts a drop that was claimed."""
        self.claim_counts[bisect_left(CLAIM_BUCKETS_S, latency_s)] += 1
        self.claim_sum_s += latency_s

    def samples(self) -> dict[str, list[tuple[Labels, float]]]:
        """What was counted, with the suffixes that summaries and histograms have."""
        steps = list(self.step_count.items())
        step, claim = "alignd_round_step_duration_seconds", "alignd_claim_latency_seconds"
        counts = list(self.claim_counts)
        limits = [*map(_number, CLAIM_BUCKETS_S), "+Inf"]
        return {
            f"{step}_sum": [({"step": name}, self.step_sum_s[name]) for name, _ in steps],
            f"{step}_count": [({"step": name}, float(count)) for name, count in steps],
            f"{claim}_bucket": [({"le": limit}, float(sum(counts[: i + 1]))) for i, limit in enumerate(limits)],
            f"{claim}_sum": [({}, self.claim_sum_s)],
            f"{claim}_count": [({}, float(sum(counts)))],
        }


def render(samples: Samples) -> str:
    """The text that Prometheus reads; metrics without a value are left out.

    Raises:
        ValueError: a value has a name or labels that are not in `METRICS`.
    """
    left = dict(samples)
    lines = []
    for metric in METRICS:
        found = [(name, left.pop(name)) for name in _series(metric) if name in left]
        if any(values for _, values in found):
            lines += [f"# HELP {metric.name} {_escaped(metric.help)}", f"# TYPE {metric.name} {metric.kind}"]
            for name, values in found:
                lines += [_line(metric, name, labels, value) for labels, value in values]
    if left:
        raise ValueError(f"no such metric: {', '.join(sorted(left))}")
    return "\n".join(lines) + "\n"


def _series(metric: Metric) -> Iterator[str]:
    if metric.kind in ("gauge", "counter"):
        yield metric.name
        return
    if metric.kind == "histogram":
        yield f"{metric.name}_bucket"
    yield f"{metric.name}_sum"
    yield f"{metric.name}_count"


def series() -> set[str]:
    """Every name that a query may use."""
    return {name for metric in METRICS for name in _series(metric)}


def _line(metric: Metric, name: str, labels: Labels, value: float) -> str:
    allowed = {*metric.labels, "le"} if name.endswith("_bucket") else set(metric.labels)
    if set(labels) != allowed:
        raise ValueError(f"{name} has the labels {sorted(allowed)}, not {sorted(labels)}")
    inside = ",".join(f'{key}="{_escaped(text, quotes=True)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}"


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
