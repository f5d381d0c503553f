"""What log lines look like, and that their names do not change by accident."""

import ast
import io
import json
import logging
import os
import warnings
from pathlib import Path

import pytest
import structlog

from daemon import events, log

FROZEN = [
    "service_started",
    "service_stopped",
    "service_recovered",
    "store_upgraded",
    "service_failed",
    "config_reloaded",
    "config_refused",
    "watcher_started",
    "watcher_lost",
    "timer_failed",
    "library_warned",
    "inbox_recreated",
    "inbox_problem_found",
    "batch_seen",
    "batch_claimed",
    "batch_returned",
    "batch_duplicated",
    "batch_accepted",
    "batch_quarantined",
    "claiming_stopped",
    "claiming_resumed",
    "round_started",
    "round_resumed",
    "round_restarted",
    "round_held_back",
    "step_finished",
    "round_rejected",
    "round_failed",
    "round_abandoned",
    "version_committed",
    "version_published",
    "version_held_back",
    "worker_started",
    "worker_died",
    "worker_silenced",
    "worker_failed",
    "worker_babbled",
    "store_verified",
    "store_damaged",
    "store_collected",
    "replica_synced",
    "replica_failed",
    "replica_restored",
    "replica_drifted",
    "metrics_started",
    "metrics_failed",
    "web_started",
    "web_failed",
    "web_answered_with_error",
    "web_refused",
    "web_changed",
]


def _lines(path: Path, form: log.Format, env: dict[str, str]) -> str:
    with path.open("w+") as stream:
        log.configure(stream, form=form, env=env)
        structlog.get_logger().warning(log.BATCH_SEEN, num_bytes=3)
        try:
            secret = "borogove"
            raise ValueError(len(secret))
        except ValueError:
            structlog.get_logger().exception(log.ROUND_FAILED)
    return path.read_text()


def test_event_names_are_frozen() -> None:
    assert list(log.EVENTS) == FROZEN


def test_events_are_named_by_their_constants_everywhere() -> None:
    folder = Path(log.__file__).parent
    calls = {"debug", "info", "warning", "error", "critical", "exception"}
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in calls and ast.unparse(node.func.value) in ("_log", "log"):
                assert isinstance(node.args[0], ast.Name | ast.IfExp), f"{path.name}:{node.lineno}"


def test_nothing_is_logged_that_is_not_listed() -> None:
    listed = {name for name, value in vars(log).items() if name.isupper() and value in log.EVENTS}
    for path in sorted(Path(log.__file__).parent.glob("*.py")):
        names = {name for name, _ in events.logged(path.read_text())}
        assert names <= listed, f"{path.name} logs {sorted(names - listed)}, which daemon/log.py does not list"
    planted = "_log.info(ZORP_GLIMMED, num=1)\nevent = A if b else C\nlog.error(event)"
    assert [name for name, _ in events.logged(planted)] == ["ZORP_GLIMMED", "A", "C"]


def test_the_page_about_events_is_what_the_sources_say() -> None:
    page = Path(log.__file__).parents[1] / "docs" / "events.md"
    assert page.read_text() == events.render(), "`python -m daemon.reference docs` writes it anew"
    for event in events.events().values():
        assert event.meaning and "|" not in event.meaning, event.name


def test_every_event_is_logged_somewhere() -> None:
    folder = Path(log.__file__).parent
    text = "".join(path.read_text() for path in folder.glob("*.py") if path.name != "log.py")
    assert [name for name in log.EVENTS if name.upper() not in text] == ["library_warned"]


def test_json_lines_are_one_object_each_without_local_variables(tmp_path: Path) -> None:
    text = _lines(tmp_path / "log", "json", {})
    first, second = (json.loads(line) for line in text.splitlines())
    assert (first["event"], first["level"], first["num_bytes"]) == ("batch_seen", "warning", 3)
    assert first["timestamp"].endswith("Z")
    assert "ValueError" in second["exception"]
    assert "borogove" not in text


def test_under_the_journal_every_line_starts_with_its_priority(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    found = path.stat()
    lines = _lines(path, "auto", {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}).splitlines()
    assert [line[:3] for line in lines] == ["<4>", "<3>"]
    assert json.loads(lines[0][3:])["event"] == "batch_seen"


def test_a_journal_that_is_somebody_elses_gives_no_prefix(tmp_path: Path) -> None:
    assert _lines(tmp_path / "log", "auto", {"JOURNAL_STREAM": "1:2"}).startswith("{")


def test_console_tracebacks_show_no_local_variables(tmp_path: Path) -> None:
    text = _lines(tmp_path / "log", "console", {})
    assert "batch_seen" in text and "ValueError" in text
    assert "locals" not in text and "'borogove'" not in text


def test_warnings_of_libraries_come_without_their_arguments(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as stream:
        log.configure(stream, form="json", env={})
        logging.getLogger("some.library").warning("could not read %s", "borogove")
    line = json.loads((tmp_path / "log").read_text())
    assert (line["event"], line["library"], line["message"]) == ("library_warned", "some.library", "could not read %s")


@pytest.mark.filterwarnings("always")
def test_a_warning_is_a_line_of_the_log_without_its_words() -> None:
    stderr = io.StringIO()
    log.configure(stderr, form="json", env={})
    warnings.warn_explicit("the slithy borogove", DeprecationWarning, "some/library.py", 7)
    warnings.warn_explicit("Callback with id '3' already exists", RuntimeWarning, "watchdog/inotify.py", 9)
    (line,) = map(json.loads, stderr.getvalue().splitlines())
    assert (line["event"], line["library"], line["message"]) == (
        "library_warned", "some/library.py:7", "DeprecationWarning"
    )  # fmt: skip
    assert "borogove" not in stderr.getvalue()


def test_a_stream_without_a_descriptor_is_no_journal() -> None:
    stream = io.StringIO()
    log.configure(stream, form="json", env={"JOURNAL_STREAM": "1:2", **os.environ})
    structlog.get_logger().info(log.BATCH_SEEN)
    assert json.loads(stream.getvalue())["event"] == "batch_seen"
