"""The page over HTTP: who may read and change what, what stands on it, and how it holds out."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from daemon import charts, exitcodes, views
from daemon.config import ConfigError, load, parse
from daemon.listening import Address, parse_listen
from daemon.service import Service
from daemon.standing import names
from daemon.web_actions import ACTIONS
from daemon.web_guard import TOKEN_FILE, Guard
from daemon.web_http import MAX_CONNECTIONS
from state import audit
from state.connection import Tables
from state.rows import BatchRow, RoundRow, VersionRow
from state.store import Store
from tests.fakes_service import NOW, WAIT_S, FakeWorker, Running, drop, fast_config, make_home, wait_until
from tests.web_world import Visitor, free_port, publish, serving, shown

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("/", "/versions", "/versions/v1", "/harm", "/diff?a=v0&b=v1", "/batches", "/quarantine", "/audit", "/login")
HOSTILE = "<img src=x onerror=alert(1)>\x1b]0;owned\x07\"'&{{7*7}}.jsonl"
SECRET = "borogove"


@contextmanager
def _two_versions(folder: Path) -> Iterator[Visitor]:
    """One page with v1 and v2 published, nobody logged in."""
    home = make_home(folder)
    with serving(home, FakeWorker(folder / "worker", home)) as found:
        publish(home, "monday.jsonl", f"{SECRET}\n")
        publish(home, HOSTILE)
        yield found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    """For tests that change nothing that another one looks at."""
    with _two_versions(tmp_path_factory.mktemp("shared")) as found:
        yield found


@pytest.fixture
def still(shared: Visitor) -> Visitor:
    """Somebody new on the shared page."""
    return Visitor(shared.port, shared.home)


@pytest.fixture
def visitor(tmp_path: Path) -> Iterator[Visitor]:
    """Somebody on a page of their own."""
    with _two_versions(tmp_path) as found:
        yield found


def _current(home: Path) -> str:
    with Store.open(home) as store:
        return store.current().name


# off and on


def test_without_an_address_nothing_listens_and_nothing_of_the_page_is_loaded(home: Path, worker: FakeWorker) -> None:
    with Running(Service(home, fast_config(), once=False, argv=worker.argv)):
        wait_until(lambda: bool(shown(home)))
        assert shown(home)["page"] is None
        assert not (home / TOKEN_FILE).exists()


def test_status_names_the_page(still: Visitor) -> None:
    assert shown(still.home)["page"] == f"http://127.0.0.1:{still.port}/"


def test_an_address_that_is_taken_is_noted_and_stops_nothing_else(home: Path, worker: FakeWorker) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = fast_config(web={"listen": str(taken.getsockname()[1])})
        with Running(Service(home, config, once=False, argv=worker.argv)):
            wait_until(lambda: "no page at" in shown(home).get("message", ""))
            publish(home, "monday.jsonl")
    assert _current(home) == "v1"


def test_a_reload_moves_the_page_and_ends_it(home: Path, worker: FakeWorker) -> None:
    ports = free_port(), free_port()
    settings = home / "service.toml"
    text = "[inbox]\nsettle_s = 0.05\nmin_free_bytes = 0\n[schedule]\nverify = ''\n[web]\nlisten = '{}'\n"
    settings.write_text(text.format(ports[0]))
    service = Service(home, load(settings), once=False, argv=worker.argv, tick_s=0.1)
    with Running(service):
        for port in (*ports, None):
            settings.write_text(text.format(port or ""))
            service.reload()
            wait_until(partial(_is_at, home, f"http://127.0.0.1:{port}/" if port else None))
            if port:
                assert Visitor(port, home).get("/").status == 200
        with pytest.raises(ConnectionRefusedError):
            Visitor(ports[1], home).get("/")


def _is_at(home: Path, url: str | None) -> bool:
    return bool(shown(home).get("page", "") == url)


def test_a_socket_that_systemd_passed_is_served(home: Path) -> None:
    code = (
        "import os, socket, sys; from pathlib import Path; from daemon.service import Service; from daemon import config;"
        "os.dup2(int(sys.argv[1]), 3, inheritable=True); os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'};"
        f"sys.exit(Service(Path({str(home)!r}), config.parse({{'web': {{'listen': 'systemd'}}}}), once=False).run())"
    )
    with socket.socket() as passed:
        passed.bind(("127.0.0.1", 0))
        passed.listen()
        command = [sys.executable, "-c", code, str(passed.fileno())]
        with subprocess.Popen(command, cwd=ROOT, pass_fds=[passed.fileno()], stderr=subprocess.DEVNULL) as process:
            try:
                wait_until(lambda: bool(shown(home).get("page")))
                assert Visitor(passed.getsockname()[1], home).get("/").status == 200
            finally:
                process.terminate()
            assert process.wait(20) == exitcodes.OK


def test_without_a_passed_socket_the_note_says_what_to_do(home: Path, worker: FakeWorker) -> None:
    with Running(Service(home, fast_config(web={"listen": "systemd"}), once=False, argv=worker.argv)):
        wait_until(lambda: "alignd.socket" in shown(home).get("message", ""))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", None),
        ("8420", Address("127.0.0.1", 8420)),
        (":8420", Address("127.0.0.1", 8420)),
        ("localhost:80", Address("localhost", 80)),
        ("[::1]:8420", Address("::1", 8420)),
        ("0.0.0.0:8420", Address("0.0.0.0", 8420)),
        ("systemd", Address()),
    ],
)
def test_addresses_that_may_be_listened_on(text: str, address: Address | None) -> None:
    assert parse_listen(text) == address


@pytest.mark.parametrize(
    "web",
    ["listen = 'x'", "listen = '0'", "listen = '99999'", "listen = '::1:80'", "listen = 'a b:80'", "hosts = ['a:1']"],
)
def test_addresses_that_make_no_sense_are_refused(tmp_path: Path, web: str) -> None:
    (tmp_path / "service.toml").write_text(f"[web]\n{web}\n")
    with pytest.raises(ConfigError, match=r"web\.(listen|hosts)"):
        load(tmp_path / "service.toml")


# reading


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_whole_strict_and_needs_nothing_from_outside(still: Visitor, path: str) -> None:
    still.log_in()
    got = still.get(path)
    assert got.status == 200
    policy = got.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert got.headers["Cache-Control"] == "no-store" and got.headers["X-Content-Type-Options"] == "nosniff"
    targets = re.findall(r'(?:href|src|action)="([^"]*)"', got.text)
    assert targets and all(re.match(r"/(?!/)|#", target) for target in targets)
    assert "style=" not in got.text and not re.search(r"<script(?! src=)| on\w+=", _without_text(got.text))


def _without_text(page: str) -> str:
    """The tags of a page."""
    return " ".join(re.findall(r"<[^>]*>", page))


@pytest.mark.parametrize(
    "path", ["/", "/versions", "/versions/v2", "/harm", "/batches", "/audit", "/live?page=now", "/diff"]
)
def test_no_batch_text_and_no_living_markup_of_a_name(still: Visitor, path: str) -> None:
    text = still.get(path).text
    assert SECRET not in text
    assert "<img" not in text and "\x1b" not in text and "\x07" not in text and "{{" not in text.replace("{{7*7}}", "")


def test_a_hostile_name_is_shown_as_it_is_written(still: Visitor) -> None:
    text = still.get("/batches").text
    assert "&lt;img src=x onerror=alert(1)&gt;\\x1b]0;owned\\x07" in text and "{{7*7}}" in text
    sha256 = re.search(r'/batches/([0-9a-f]{64})">&lt;img', text)
    assert sha256 is not None
    assert still.get(f"/batches/{sha256[1]}").status == 200


@pytest.mark.parametrize(
    "path", ["/nothing", "/versions/v99", "/batches/" + "0" * 64, "/diff?a=v99", "/static/../web.py"]
)
def test_what_is_not_there_is_said_so(still: Visitor, path: str) -> None:
    assert still.get(path).status == 404


@pytest.mark.parametrize(
    "query", ["before=abc", "before=-1", "before=" + "9" * 40, "span=x", "page=-1", "state=x", "about=%00%ff"]
)
@pytest.mark.parametrize("path", ["/versions", "/batches", "/audit", "/harm", "/quarantine"])
def test_odd_queries_break_nothing(still: Visitor, path: str, query: str) -> None:
    assert still.get(f"{path}?{query}").status == 200


def test_a_head_has_no_body_and_static_files_have_their_kinds(still: Visitor) -> None:
    got = still.ask("HEAD", "/")
    assert (got.status, got.text) == (200, "") and int(got.headers["Content-Length"]) > 1000
    assert still.get("/static/page.css").headers["Content-Type"] == "text/css; charset=utf-8"
    assert still.get("/static/page.js").headers["Content-Type"] == "text/javascript; charset=utf-8"


def test_the_parts_that_live_follow_a_round(home: Path, worker: FakeWorker) -> None:
    losses = [{"event": "progress", "step": "safety", "fraction": n / 40, "loss": 1.0 + n} for n in range(20)]
    paced = [event for loss in losses for event in (loss, {"sleep": 0.01})]
    worker.script("round", {"event": "step", "step": "parse", "result": {}}, *paced, {"sleep": 60})
    with serving(home, worker) as visitor:
        drop(home, "monday.jsonl")

        def parts() -> dict[str, str]:
            found: dict[str, str] = visitor.get("/live?page=now").json()["parts"]
            return found

        wait_until(lambda: "<svg" in parts()["round"])
        assert "monday.jsonl" in parts()["round"] and "safety" in parts()["standing"]
        assert set(visitor.get("/live?page=audit").json()["parts"]) == {"standing"}


# who may


def test_reading_needs_no_token_and_changing_does(still: Visitor) -> None:
    assert still.get("/").status == 200
    assert still.get("/confirm/rollback").headers["Location"] == "/login?next=%2Fconfirm%2Frollback"
    assert still.post("/do/rollback", {"ref": "v1"}).status == 401
    assert _current(still.home) == "v2"


def test_with_a_private_page_reading_needs_the_token_too(home: Path, worker: FakeWorker) -> None:
    with serving(home, worker, web={"token_for": "everything"}) as visitor:
        assert visitor.get("/versions?span=all").headers["Location"] == "/login?next=%2Fversions%3Fspan%3Dall"
        assert visitor.get("/live").status == 401
        assert visitor.get("/login").status == 200 and visitor.get("/static/page.css").status == 200
        visitor.log_in()
        assert visitor.get("/versions").status == 200


def test_the_token_file_is_private_and_a_new_token_ends_what_the_old_one_opened(visitor: Visitor) -> None:
    path = visitor.home / TOKEN_FILE
    assert path.stat().st_mode & 0o777 == 0o600 and len(visitor.token) >= 32
    visitor.log_in()
    assert visitor.get("/confirm/pause").status == 200
    path.unlink()
    assert visitor.get("/confirm/pause").status == 303
    visitor.log_in()
    assert visitor.get("/confirm/pause").status == 200


@pytest.mark.parametrize("spoil", ["readable", "short", "link"])
def test_a_token_file_that_others_may_know_serves_nothing(home: Path, worker: FakeWorker, spoil: str) -> None:
    path = home / TOKEN_FILE
    if spoil == "link":
        (home / "elsewhere").write_text("x" * 40)
        path.symlink_to(home / "elsewhere")
    else:
        path.write_text("x" * (40 if spoil == "readable" else 8))
        path.chmod(0o644 if spoil == "readable" else 0o600)
    with Running(Service(home, fast_config(web={"listen": str(free_port())}), once=False, argv=worker.argv)):
        wait_until(lambda: TOKEN_FILE in shown(home).get("message", ""))
        assert shown(home)["page"] is None


@pytest.mark.parametrize("token", ["", "wrong", "x" * 5000, "töken"])
def test_a_wrong_token_opens_nothing(still: Visitor, token: str) -> None:
    got = still.post("/login", {"token": token, "next": "/"})
    assert (got.status, still.cookie) == (401, "") and "That is not the token" in got.text
    got = still.post("/do/pause", {}, Authorization=f"Bearer {token.encode('ascii', 'replace').decode()}")
    assert got.status == 401


def test_the_cookie_is_strict_and_holds_no_token(still: Visitor) -> None:
    got = still.post("/login", {"token": still.token, "next": "/audit"})
    assert (got.status, got.headers["Location"]) == (303, "/audit")
    assert "; HttpOnly; SameSite=Strict" in got.headers["Set-Cookie"] and still.token not in got.headers["Set-Cookie"]
    assert still.token not in still.get("/confirm/pause").text
    still.post("/logout", still.form("/confirm/pause"))
    assert still.get("/confirm/pause").status == 303


@pytest.mark.parametrize(
    "target", ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)", "/a\r\nX: y"]
)
def test_a_login_leads_to_this_page_only(still: Visitor, target: str) -> None:
    got = still.post("/login", {"token": still.token, "next": target})
    assert (got.status, got.headers["Location"]) == (303, "/")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_another_site_changes_nothing_even_in_a_browser_that_is_logged_in(
    still: Visitor, headers: dict[str, str]
) -> None:
    still.log_in()
    form = still.form("/confirm/rollback")
    assert form["form_token"] and still.post("/do/rollback", form, **headers).status == 403
    assert still.post("/login", {"token": still.token}, **headers).status == 403
    assert _current(still.home) == "v2"


@pytest.mark.parametrize("form_token", ["", "0" * 64, "ä"])
def test_a_form_of_somebody_else_changes_nothing(still: Visitor, form_token: str) -> None:
    still.log_in()
    assert still.confirm("rollback", form_token=form_token).status == 403
    assert _current(still.home) == "v2"


def test_nothing_is_changed_by_a_link(still: Visitor) -> None:
    still.log_in()
    assert still.get("/do/rollback").status == 404
    assert still.get("/logout").status == 404
    assert still.ask("PUT", "/do/rollback").status == 501
    assert _current(still.home) == "v2"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8420", "localhost.evil.example", "", "127.0.0.1.evil.example"]
)
def test_a_name_that_a_stranger_may_own_is_no_name_of_the_page(still: Visitor, host: str) -> None:
    for path in ("/", "/live", "/static/page.js", "/login"):
        assert still.get(path, Host=host).status == 421
    assert still.post("/login", {"token": still.token}, Host=host, Origin=f"http://{host}").status == 421


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8420", "192.0.2.7", "align.example.org"]
)
def test_addresses_and_names_from_the_settings_are(home: Path, worker: FakeWorker, host: str) -> None:
    with serving(home, worker, web={"hosts": ["Align.example.org"]}) as visitor:
        assert visitor.get("/", Host=host).status == 200


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
        ("GET http://[/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        ("POST /login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        ("POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        ("POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n", 413),
        ("POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\na=b", 415),
        ("GET /?" + "&".join(f"a{n}=1" for n in range(40)) + " HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ],
)
def test_requests_that_cannot_be_read_are_refused(still: Visitor, request_text: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", still.port), 10) as connection:
        connection.sendall(request_text.encode())
        assert f" {status} " in connection.makefile().readline()


def test_too_many_connections_are_closed_and_the_page_goes_on(home: Path, worker: FakeWorker) -> None:
    with serving(home, worker) as visitor:
        idle = [socket.create_connection(("127.0.0.1", visitor.port), 10) for _ in range(MAX_CONNECTIONS + 8)]
        publish(home, "monday.jsonl")  # the supervisor does not mind
        for connection in idle:
            connection.close()
        wait_until(lambda: _answers(visitor))


def _answers(visitor: Visitor) -> bool:
    try:
        return visitor.get("/").status == 200
    except OSError:
        return False


# changing


def test_a_rollback_is_asked_for_confirmed_told_and_in_the_audit(visitor: Visitor) -> None:
    visitor.log_in()
    asked = visitor.get("/confirm/rollback").text
    assert "v2 leaves service and v1 comes into service" in asked and "Blocked from then on: v2." in asked
    got = visitor.confirm("rollback", reason="worse about <cooking>")
    assert got.status == 303
    told = visitor.get(got.headers["Location"]).text
    assert "v2 -&gt; v1" in told and "worse about &lt;cooking&gt;" in told
    assert "v2 -&gt; v1" not in visitor.get(got.headers["Location"]).text
    with Store.open(visitor.home) as store:
        assert (store.current().name, store.held is not None) == ("v1", True)
        [line] = audit.newest(store, 1)
        assert (line.action, line.actor, line.details["reason"]) == ("rolled_back", "page", "worse about <cooking>")


def test_what_another_tab_changed_meanwhile_is_not_confirmed(visitor: Visitor) -> None:
    visitor.log_in()
    form = visitor.form("/confirm/rollback")
    assert visitor.command("rollback").status == 200
    got = visitor.post("/do/rollback", form)
    assert got.status == 409 and "something changed" in got.text.lower()
    assert _current(visitor.home) == "v1"
    resume = visitor.form("/confirm/resume")
    assert visitor.command("resume").status == 200
    assert visitor.post("/do/resume", resume).status == 409


def test_every_action_does_what_its_command_does(home: Path, worker: FakeWorker) -> None:
    """Through scripts; the browser's tests go through the forms."""
    worker.script("intake-2", {"event": "done", "outcome": "quarantined", "reasons": ["no rows"]})
    with serving(home, worker, publish={"approval": True}) as visitor, Store.open(home) as store:
        drop(home, "monday.jsonl", "one\n")
        wait_until(lambda: bool(store.ledger.versions("awaiting_approval")))
        assert visitor.command("approve", "v1", "read it").json() == {"before": "v0", "after": "v1", "replicas": []}
        assert visitor.command("pin", "v1").status == 200 and store.version(1).pinned
        assert visitor.command("unpin", "v1").status == 200 and not store.version(1).pinned
        assert visitor.command("pause").json()["paused"] and store.paused is not None
        drop(home, "tuesday.jsonl", "two\n")
        wait_until(lambda: bool(store.quarantined()))
        [entry] = store.quarantined()
        assert visitor.command("release", entry.id).status == 200
        assert visitor.command("resume").json()["lifted"] == ["pause"]
        wait_until(lambda: bool(store.ledger.versions("awaiting_approval")))
        assert visitor.command("reject", "v2", "too terse").json() == {"id": "v2", "state": "rejected"}
        assert visitor.command("retry", entry.id).json()["state"] == "queued"
        wait_until(lambda: bool(store.ledger.versions("awaiting_approval")))
        assert visitor.command("rollback", "v0").json()["after"] == "v0" and store.held is not None
        assert {line.actor for line in audit.newest(store, 99) if line.action == "pinned"} == {"page"}
    assert set(ACTIONS) == {"rollback", "pause", "resume", "approve", "reject", "pin", "unpin", "retry", "release"}


@pytest.mark.parametrize(
    ("action", "ref", "status"),
    [
        ("rollback", "v9", 404),
        ("rollback", "v2", 409),
        ("approve", "", 404),
        ("reject", "v1", 409),
        ("pin", "", 404),
        ("retry", "nothing", 404),
        ("release", "nothing", 404),
        ("resume", "", 409),
        ("promote", "v1", 404),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_reason(still: Visitor, action: str, ref: str, status: int) -> None:
    got = still.command(action, ref)
    assert got.status == status and got.json()["error"]
    assert _current(still.home) == "v2"


def test_a_restart_keeps_the_port_and_who_is_logged_in(home: Path, worker: FakeWorker) -> None:
    with serving(home, worker) as visitor:
        visitor.log_in()
        publish(home, "monday.jsonl")
    with pytest.raises(ConnectionRefusedError):
        visitor.get("/")
    with serving(home, worker, port=visitor.port):
        assert visitor.confirm("rollback").status == 303
    assert _current(home) == "v0"


# many versions


NUM_VERSIONS = 10_000
MAX_STATEMENTS, MAX_ROWS = 60, 1_500
OF_ALL_ANCESTORS = 3 * NUM_VERSIONS
"""Rows that a page may read which goes through them: the versions, with their rounds and batches."""


def _many(store: Store, count: int) -> None:
    """Versions with batches, rounds and audit lines, and no files."""
    record = json.dumps({"tensors": {}, "files": {}}).encode()
    digest = hashlib.sha256(record).hexdigest()
    with store._changing("fill"), store.ledger.transaction():
        for number in range(1, count):
            sha256, round_id = f"{number:064x}", f"r{number:06d}"
            name = f"batch {number}.jsonl"
            store.ledger.save(BatchRow(sha256, name, number, "published", NOW, 1000, 1, f"{number}.drop"))
            shares = {"harm_rate": 0.5 / number, "over_refusal_rate": 0.1, "utility": 0.9}
            metrics = {**shares, "harm_by_batch": {f"{n:064x}"[:12]: 0.1 for n in range(max(1, number - 20), number)}}
            store.ledger.save(
                VersionRow(number, number - 1, "published", sha256, round_id, NOW, metrics, record=digest)
            )
            store.ledger.save(
                RoundRow(round_id, "batch", sha256, None, number - 1, "published", None, NOW, NOW, "", number)
            )
            audit.record(store.ledger, "version_committed", f"v{number}", actor="service", now=NOW, details={})
        store._point(count - 1, count - 2, "publish", actor="service", now=NOW, reason="")
    for number in (1, count - 2, count - 1):
        store.version_path(number).mkdir(parents=True)
        store.record_path(number).write_bytes(record)
    model = store.model_path(0)
    model.rename(store.model_path(count - 1))
    model.mkdir()
    store.catch_up()


def _rows_read_by_pages(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each statement that pages ask from now on the rows that come, and not of what the service asks beside them."""
    asked: list[int] = []
    run = Tables._run

    def noted(self: Tables, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        found = run(self, sql, parameters)
        if "process_request" in threading.current_thread().name:
            asked.append(len(found))
        return found

    monkeypatch.setattr(Tables, "_run", noted)
    return asked


def test_of_ten_thousand_versions_pages_read_few_rows_with_few_statements_and_stay_small(
    home: Path, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = NUM_VERSIONS - 1
    with Store.open(home) as store:
        _many(store, NUM_VERSIONS)
    paths = ["/", "/live?page=now", "/versions", "/versions?before=5000", "/versions?span=all", "/versions?span=1000"]
    paths += [f"/versions/v{newest}", "/versions/v1", "/harm", "/harm?before=3000", f"/diff?a=v1&b=v{newest}"]
    paths += ["/batches", "/batches?before=40", "/audit", "/audit?before=5000", f"/audit?about=v{newest - 7}"]
    with serving(home, worker) as visitor:
        asked = _rows_read_by_pages(monkeypatch)
        read = {}
        for path in paths:
            asked.clear()
            got = visitor.get(path)
            assert got.status == 200, path
            assert len(got.text) < 250_000, path
            read[path] = (len(asked), sum(asked))
        allowed = {path: OF_ALL_ANCESTORS if f"v{newest}" in path else 0 for path in paths}
        assert {path: num for path, (num, _) in read.items() if not 0 < num <= MAX_STATEMENTS} == {}
        assert {path: num for path, (_, num) in read.items() if num > MAX_ROWS + allowed[path]} == {}
        visitor.log_in()
        assert f"v{newest - 1} comes into service" in visitor.get("/confirm/rollback").text


def test_versions_without_a_batch_are_named(home: Path, worker: FakeWorker) -> None:
    with serving(home, worker) as visitor:
        for name in "abc":
            publish(home, f"{name}.jsonl", name)
        with Store.open(home) as store:
            store.request_revert("v2", actor="test", reason="", now=NOW)
            store.request_consolidation(actor="test", reason="", now=NOW)
            wait_until(lambda: store.current().id == 5)
        text = visitor.get("/versions").text
    assert text.count('<td class="name">revert of v2</td>') == 1
    assert text.count('<td class="name">consolidation</td>') == 1 and text.count('<td class="name">–</td>') == 1


def test_rounds_without_a_batch_are_named(home: Path, worker: FakeWorker) -> None:
    event = {"event": "progress", "step": "teach", "fraction": 0.1, "loss": None}
    worker.script("round-4", event, {"sleep": 60})
    with serving(home, worker) as visitor:
        for name in "abc":
            publish(home, f"{name}.jsonl", name)
        with Store.open(home) as store:
            store.request_consolidation(actor="test", reason="", now=NOW)
            wait_until(lambda: bool(store.ledger.rounds("running")))
            store.request_revert("v2", actor="test", reason="", now=NOW)
        wait_until(lambda: "learns all batches together" in visitor.get("/").text)
        assert "<li>revert of v2</li>" in visitor.get("/").text


def test_pages_follow_one_another_to_the_oldest(home: Path, worker: FakeWorker) -> None:
    with Store.open(home) as store:
        _many(store, 130)
    with serving(home, worker) as visitor:
        assert _walked(visitor, "/versions", r'scope="row"><a href="/versions/(v\d+)"') == [
            f"v{n}" for n in range(129, -1, -1)
        ]
        assert _walked(visitor, "/batches", r">(batch \d+)\.jsonl<") == [f"batch {n}" for n in range(129, 0, -1)]
        lines = _walked(visitor, "/audit", r'<tr><td class="n">(\d+)</td>')
        assert lines == [str(n) for n in range(130, 0, -1)]


def _walked(visitor: Visitor, path: str, pattern: str) -> list[str]:
    """What a pattern finds on a page and on all that its `next` links lead to."""
    found = []
    at: str | None = path
    while at is not None:
        text = visitor.get(at).text
        found += re.findall(pattern, text)
        following = re.search(r'rel="next" href="([^"]*)"', text)
        at = following[1].replace("&amp;", "&") if following else None
    return found


def test_the_page_keeps_the_supervisor_small(home: Path) -> None:
    port = free_port()
    with Store.open(home) as store:
        _many(store, 2000)
    code = (
        "import sys; from pathlib import Path; from daemon.service import Service; from daemon import config;"
        f"s = Service(Path({str(home)!r}), config.parse({{'web': {{'listen': '{port}'}}}}), once=False); s.run();"
        "print(sorted({'torch', 'transformers', 'matplotlib', 'pyarrow'} & set(sys.modules)))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_until(lambda: bool(shown(home).get("page")))
            visitor = Visitor(port, home)
            visitor.log_in()
            for path in (
                "/",
                "/versions?span=all",
                "/versions/v1999",
                "/harm",
                "/diff?a=v1&b=v1999",
                "/batches",
                "/audit",
            ):
                assert visitor.get(path).status == 200
            status = Path(f"/proc/{process.pid}/status").read_text()
        finally:
            process.terminate()
        out, _ = process.communicate(timeout=WAIT_S)
    assert int(re.search(r"VmHWM:\s+(\d+)", status)[1]) // 1024 <= 80  # type: ignore[index]
    assert out.splitlines()[-1] == b"[]"


# parts


def test_tokens_are_compared_without_the_line_break(tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    guard.make_token()
    token = (tmp_path / TOKEN_FILE).read_text()
    assert token.endswith("\n") and guard.is_token(token) and guard.is_token(token.strip())
    assert not guard.is_token(token.strip()[:-1]) and not guard.is_token("")


def test_two_homes_on_one_machine_have_cookies_of_their_own(tmp_path: Path) -> None:
    names = set()
    for name in "ab":
        (tmp_path / name).mkdir()
        guard = Guard(tmp_path / name)
        guard.make_token()
        names.add(guard.cookie().partition("=")[0])
    assert len(names) == 2


@pytest.mark.parametrize(
    ("losses", "is_drawn"),
    [
        ([], False),
        ([1.0], False),
        ([1.0, 1.0], True),
        ([0.0, 0.0], True),
        ([1e-9, 2e9, None], True),
        ([-3.0, -1.0], True),
    ],
)
def test_a_loss_chart_is_drawn_of_any_two_numbers(losses: list[float | None], is_drawn: bool) -> None:
    svg = charts.loss_chart("safety <b>", losses)
    assert svg.startswith("<svg") == is_drawn
    assert "nan" not in svg and "inf" not in svg and "<b>" not in svg


def test_a_chart_of_versions_marks_what_is_in_service_and_links_each(home: Path) -> None:
    with Store.open(home) as store:
        _many(store, 5)
        rows = store.ledger.versions()
        svg = charts.versions_chart(views.history_view(rows, names(store, rows)))
    assert svg.count('href="/versions/v') == 4 and svg.count('class="now"') == 1
    assert charts.versions_chart([]) == ""


@pytest.mark.parametrize(
    ("share", "kind"), [(None, ""), (0.0, "h0"), (0.001, "h1"), (0.5, "h5"), (1.0, "h10"), (7, "h10"), ("x", "")]
)
def test_heat_grows_with_the_share(share: object, kind: str) -> None:
    assert charts.heat(share) == kind


def test_stored_settings_of_before_the_page_are_still_read() -> None:
    assert parse({"preset": "alignd"}).web.listen == ""
