"""The metrics: what they say, how they read, and that nothing else names them wrongly."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.config import Config
from daemon.config_serving import MetricsSection, address
from daemon.exporter import Exporter
from daemon.metrics import CONTENT_TYPE, METRICS, Tally, render, series
from daemon.service import Service
from state.ledger import Ledger
from state.store import Store
from tests import engine_stands as stands
from tests.fakes_service import NOW, FakeWorker, Running, drop, fast_config, wait_until

ROOT = Path(__file__).resolve().parent.parent
UNITS = ("seconds", "bytes", "ratio", "info", "total")
BASE_UNITS_ONLY = re.compile(r"_(ms|milliseconds|minutes|hours|kb|mb|gb|percent|kilobytes|megabytes)(_|$)")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _scrape(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
        assert reply.headers["Content-Type"] == CONTENT_TYPE
        return str(reply.read().decode())


def _parsed(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """As Prometheus' own client reads it."""
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(text)
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}
    assert len(found) == len(samples), "a series stands there twice"
    return found


def _service(home: Path, worker: FakeWorker, port: int, **tables: Any) -> Running:
    config: Config = fast_config(metrics={"listen": f"127.0.0.1:{port}"}, **tables)
    return Running(Service(home, config, once=False, argv=worker.argv, tick_s=0.1))


def _listens(port: int) -> bool:
    try:
        _scrape(port)
    except OSError:
        return False
    return True


def test_what_a_service_at_work_shows(home: Path, worker: FakeWorker) -> None:
    worker.script(
        "round",
        {"event": "progress", "step": "parse", "fraction": 0.5},
        {"event": "step", "step": "parse", "result": {}},
        {"event": "done", "outcome": "ready"},
    )
    port = _free_port()
    with stands.sglang() as engine:
        serving = [
            {"name": "gpu-a", "kind": "sglang", "url": engine.url},
            {"name": "away", "kind": "sglang", "url": "http://127.0.0.1:1"},
        ]
        with _service(home, worker, port, serving=serving):
            wait_until(lambda: _listens(port))
            drop(home, "borogove.jsonl")
            wait_until(lambda: engine.label == "v1")
            wait_until(lambda: _parsed(_scrape(port))["alignd_serving_replica_in_sync", (("replica", "gpu-a"),)] == 1)
            degraded = ("alignd_serving_replicas", (("state", "degraded"),))
            wait_until(lambda: _parsed(_scrape(port))[degraded] == 1)
            text = _scrape(port)
    found = _parsed(text)
    for name, labels, value in [
        ("alignd_current_version", (), 1),
        ("alignd_ledger_readable", (), 1),
        ("alignd_versions", (("state", "published"),), 1),
        ("alignd_versions", (("state", "rolled_back"),), 0),
        ("alignd_rounds", (("state", "published"),), 1),
        ("alignd_batches", (("state", "published"),), 1),
        ("alignd_queue_length", (), 0),
        ("alignd_held", (), 0),
        ("alignd_axis_ratio", (("axis", "harm_rate"),), 0.1),
        ("alignd_serving_replicas", (("state", "in_sync"),), 1),
        ("alignd_serving_replicas", (("state", "degraded"),), 1),
        ("alignd_serving_replica_version", (("replica", "away"),), -1),
        ("alignd_round_step_duration_seconds_count", (("step", "parse"),), 1),
        ("alignd_claim_latency_seconds_count", (), 1),
        ("alignd_claim_latency_seconds_bucket", (("le", "+Inf"),), 1),
    ]:
        assert found[name, labels] == value, name
    assert 0 < found["process_resident_memory_bytes", ()] < 2**40
    assert found["alignd_claim_latency_seconds_sum", ()] < 60
    assert "borogove" not in text and engine.url not in text


def test_a_hold_and_gates_are_shown(home: Path, worker: FakeWorker) -> None:
    gates = [
        {"name": "harm", "klass": "required", "verdict": "pass", "value": 0.05},
        {"name": "utility", "klass": "required", "verdict": "inconclusive", "value": None},
    ]
    worker.script(
        "round",
        {"event": "step", "step": "evaluate", "result": {"gates": gates}},
        {"event": "done", "outcome": "rejected", "reasons": ["too few"]},
    )
    port = _free_port()
    with _service(home, worker, port):
        drop(home, "a.jsonl")
        with Store.open(home) as store:
            wait_until(lambda: bool(store.ledger.batches("rejected")))
            store.pause(reason="x", actor="tester", now=NOW)
        found = _parsed(_scrape(port))
    assert found["alignd_paused", ()] == 1
    assert found["alignd_gate_value", (("gate", "harm"),)] == 0.05
    assert found["alignd_gate_passed", (("gate", "harm"),)] == 1
    assert found["alignd_gate_passed", (("gate", "utility"),)] == 0
    assert ("alignd_gate_value", (("gate", "utility"),)) not in found


@pytest.mark.parametrize(
    ("listen", "found"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("[::1]:9464", ("::1", 9464)),
        ("9464", ("127.0.0.1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
    ],
)
def test_a_port_alone_is_this_machines(listen: str, found: tuple[str, int]) -> None:
    assert address(listen) == found


@pytest.mark.parametrize("listen", ["localhost", "here:", "here:x", "70000", "here:70000", "٣"])
def test_what_names_no_port_is_refused(listen: str) -> None:
    with pytest.raises(ValueError, match="is no HOST:PORT, and no PORT alone"):
        address(listen)


def test_without_settings_nothing_listens(home: Path, worker: FakeWorker) -> None:
    config = fast_config()
    assert config.metrics.listen == "" and config.metrics.textfile == ""


def test_a_port_that_is_taken_is_told_and_stops_nothing(home: Path, worker: FakeWorker) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with _service(home, worker, taken.getsockname()[1]):
            drop(home, "a.jsonl")
            wait_until(lambda: (home / "models" / "current").resolve().name == "v1")
            told = home / "run" / "progress.json"
            wait_until(lambda: "cannot be listened on" in told.read_text())


def test_a_broken_ledger_leaves_what_does_not_need_it(
    home: Path, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = _free_port()
    with _service(home, worker, port):
        wait_until(lambda: _listens(port))

        def broken(self: Ledger, kind: object) -> dict[str, int]:
            raise OSError(5, "no disk")

        monkeypatch.setattr(Ledger, "counts", broken)
        found = _parsed(_scrape(port))
    assert found["alignd_ledger_readable", ()] == 0
    assert ("alignd_current_version", ()) not in found and ("process_resident_memory_bytes", ()) in found


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[Exporter]:
    said: list[str] = []
    config = MetricsSection(listen="127.0.0.1:0", textfile="out/alignd.prom", every_s=0.001)
    made = Exporter(tmp_path, config, lambda: "x 1\n", said.append)
    made.start()
    yield made
    made.stop()


def test_only_metrics_are_served_and_a_client_that_hangs_is_dropped(exporter: Exporter) -> None:
    assert exporter.port is not None
    with socket.create_connection(("127.0.0.1", exporter.port)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/etc/passwd", timeout=20)
        assert caught.value.code == 404
        caught.value.close()
    request = urllib.request.Request(f"http://127.0.0.1:{exporter.port}/metrics", b"x=1")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert caught.value.code == 501
    caught.value.close()


def test_the_file_for_node_exporter_is_replaced_whole(exporter: Exporter, tmp_path: Path) -> None:
    exporter.tick()
    assert not (tmp_path / "out").exists(), "the folder is somebody else's"
    (tmp_path / "out").mkdir()
    time.sleep(0.01)
    exporter.tick()
    path = tmp_path / "out" / "alignd.prom"
    assert path.read_text() == "x 1\n" and path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == ["alignd.prom"]


def test_names_follow_the_conventions_of_prometheus() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    for metric in METRICS:
        assert re.fullmatch(r"(alignd|process)_[a-z0-9_]+", metric.name)
        assert BASE_UNITS_ONLY.search(metric.name) is None, metric.name
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric.name
        assert metric.help.endswith(".") or metric.help.endswith("known."), metric.name


def test_what_has_no_entry_or_wrong_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="no such metric: zorp"):
        render({"zorp": [({}, 1.0)]})
    with pytest.raises(ValueError, match="has the labels"):
        render({"alignd_held": [({"batch": "x"}, 1.0)]})


def test_labels_are_escaped() -> None:
    text = render({"alignd_build_info": [({"version": 'a"b\\c\nd'}, 1.0)]})
    assert _parsed(text) == {("alignd_build_info", (("version", 'a"b\\c\nd'),)): 1.0}


def test_a_tally_counts_into_cumulative_buckets() -> None:
    tally = Tally()
    for latency_s in (0.05, 0.1, 0.3, 999.0):
        tally.claim(latency_s)
    tally.step("safety", 2.0)
    tally.step("safety", 3.0)
    found = _parsed(render(tally.samples()))
    buckets = {labels[0][1]: value for (name, labels), value in found.items() if name.endswith("_bucket")}
    assert (buckets["0.1"], buckets["0.5"], buckets["60"], buckets["+Inf"]) == (2, 3, 3, 4)
    assert found["alignd_round_step_duration_seconds_sum", (("step", "safety"),)] == 5.0


def _names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:alignd|process)_[a-z0-9_]+", expression))


def test_dashboard_and_alerts_name_only_what_exists() -> None:
    dashboard = json.loads((ROOT / "packaging" / "grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries = [entry["query"]["query"] for entry in dashboard["templating"]["list"] if entry["type"] == "query"]
    alerts = re.findall(r"^ +expr: (.+)$", (ROOT / "packaging" / "alerts.yml").read_text(), re.M)
    assert len(expressions) > 15 and len(alerts) > 4
    used = set().union(*map(_names, [*expressions, *queries, *alerts]))
    assert used - series() == set()
    by_label = {label for metric in METRICS for label in metric.labels} | {"job", "instance", "le"}
    for expression in [*expressions, *alerts]:
        assert set(re.findall(r"[{,]\s*(\w+)\s*=", expression)) <= by_label, expression
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24 and panel["title"]
    shown = {
        metric.name
        for metric in METRICS
        if any(name in used for name in (metric.name, f"{metric.name}_sum", f"{metric.name}_bucket"))
    }
    untold = {metric.name for metric in METRICS} - shown
    assert untold <= {
        "alignd_current_since_timestamp_seconds", "alignd_inbox_waiting", "alignd_worker_running",
        "alignd_serving_replica_in_sync", "process_cpu_seconds_total", "process_start_time_seconds",
    }  # fmt: skip


def test_the_page_about_metrics_lists_every_metric() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert [metric.name for metric in METRICS if f"`{metric.name}`" not in text] == []
