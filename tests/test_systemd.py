"""The shipped unit under a real systemd, in a sandbox: its start, its death, its watchdog, its stop, its folders."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from benchmarks.world.world import World
from state.layout import PROGRESS_FILE
from tests.product import Home, made_home
from tests.systemd_sandbox import LIBRARIES, ROOT, Sandbox, why_not

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.skipif(bool(why_not()), reason=why_not())]
# what takes minutes at its default; nothing that the unit is trusted for
QUICK = f"""[Service]
WatchdogSec=4
RestartSec=1
StandardOutput=file:/run/alignd.log
StandardError=inherit
Environment={LIBRARIES} OMP_NUM_THREADS=1
"""
HOME = "/var/lib/alignd"


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate(0)


@pytest.fixture(scope="module")
def home(world: World, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home that belongs to root until systemd hands it over."""
    made = made_home(tmp_path_factory.mktemp("systemd") / "home", world)
    made.hurry()
    return made


@pytest.fixture(scope="module")
def sandbox(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    unit = (ROOT / "packaging" / "alignd.service").read_text()
    log = tmp_path_factory.mktemp("manager") / "log"
    with Sandbox(home.path, {"alignd.service": unit, "alignd.service.d/test.conf": QUICK}, log) as made:
        yield made


def _until(condition: Callable[[], bool], sandbox: Sandbox, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, (
            f"{sandbox.systemctl('status', 'alignd.service', code=None)}\n{_said(sandbox)}"
        )
        time.sleep(0.1)


def _said(sandbox: Sandbox) -> str:
    return sandbox.run("cat", "/run/alignd.log", code=None)[-3000:]


def _step(home: Home) -> str:
    """The step that runs now; empty when none does."""
    try:
        return str(json.loads((home.path / PROGRESS_FILE).read_text()).get("step") or "")
    except (FileNotFoundError, json.JSONDecodeError):
        return ""


def _versions(sandbox: Sandbox) -> list[str]:
    return [row["id"] for row in json.loads(sandbox.alignd("--json", "history"))]


def test_start_blocks_until_the_service_is_ready_and_says_what_it_does(sandbox: Sandbox, home: Home) -> None:
    assert sandbox.show("ActiveState") == "inactive"
    sandbox.systemctl("start", "alignd.service")
    assert (sandbox.show("ActiveState"), sandbox.show("SubState")) == ("active", "running")
    assert (home.path / PROGRESS_FILE).exists(), "READY=1 was sent before the service served"
    assert sandbox.show("StatusText") == "idle"


def test_it_runs_as_its_own_user_in_folders_that_are_its_own(sandbox: Sandbox) -> None:
    owner = sandbox.run("ps", "-o", "user=", "-p", sandbox.show("MainPID")).strip()
    assert owner == "alignd"
    found = sandbox.run(
        "stat", "-c", "%a %U %G %n", HOME, f"{HOME}/store", f"{HOME}/store/batches", "/var/cache/alignd"
    )
    assert found.splitlines() == [
        f"750 alignd alignd {HOME}",
        f"700 alignd alignd {HOME}/store",
        f"700 alignd alignd {HOME}/store/batches",
        "750 alignd alignd /var/cache/alignd",
    ]


def test_a_batch_becomes_a_version_inside_the_hardening(sandbox: Sandbox, home: Home, world: World) -> None:
    home.drop(world, 0, "monday.jsonl")
    _until(lambda: _step(home) == "over_safety", sandbox)
    assert "over_safety" in sandbox.show("StatusText")
    _until(lambda: "v1" in _versions(sandbox), sandbox, 300)
    assert home.current() == "v1"


def test_a_killed_service_is_started_again(sandbox: Sandbox) -> None:
    killed = sandbox.kill_main(signal.SIGKILL)
    _until(lambda: sandbox.show("ActiveState") == "active" and int(sandbox.show("MainPID")) not in (0, killed), sandbox)
    assert sandbox.show("NRestarts") == "1"
    sandbox.alignd("verify", "--deep")


def test_a_hung_service_is_killed_by_the_watchdog_and_started_again(sandbox: Sandbox) -> None:
    hung = sandbox.kill_main(signal.SIGSTOP)
    _until(lambda: sandbox.show("NRestarts") == "2", sandbox)
    _until(lambda: sandbox.show("ActiveState") == "active" and int(sandbox.show("MainPID")) not in (0, hung), sandbox)


def test_a_stop_during_training_is_quick_and_the_round_goes_on_afterwards(
    sandbox: Sandbox, home: Home, world: World
) -> None:
    home.drop(world, 1, "tuesday.jsonl")
    _until(lambda: _step(home) == "safety", sandbox)
    began = time.monotonic()
    sandbox.systemctl("stop", "alignd.service")
    assert time.monotonic() - began < 60, "TimeoutStopSec"
    assert sandbox.show("Result") == "success"
    assert sandbox.run("pgrep", "-u", "alignd", code=None) == "", "a process of the service is left"
    assert "v2" not in _versions(sandbox)
    sandbox.systemctl("start", "alignd.service")
    _until(lambda: "v2" in _versions(sandbox), sandbox, 300)
    (row,) = [row for row in json.loads(sandbox.alignd("--json", "batches")) if row["name"] == "tuesday.jsonl"]
    assert row["state"] == "published"


def test_settings_that_cannot_be_used_stop_it_and_no_restart_is_tried(sandbox: Sandbox, home: Home) -> None:
    sandbox.systemctl("stop", "alignd.service")
    settings = home.path / "service.toml"
    kept = settings.read_bytes()
    settings.write_bytes(kept + b"\n[nonsense]\n")
    try:
        sandbox.systemctl("start", "alignd.service", code=None)
        _until(lambda: sandbox.show("ActiveState") == "failed", sandbox)
        assert (sandbox.show("ExecMainStatus"), sandbox.show("NRestarts")) == ("78", "0")
    finally:
        settings.write_bytes(kept)
    sandbox.systemctl("reset-failed", "alignd.service")
    sandbox.systemctl("start", "alignd.service")
    assert sandbox.show("ActiveState") == "active"


def test_the_page_is_served_through_the_socket_unit_with_the_hardening_as_it_is(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = made_home(tmp_path_factory.mktemp("page") / "home", world)
    made.hurry()
    with (made.path / "service.toml").open("a") as settings:
        settings.write('\n[web]\nlisten = "systemd"\n')
    units = {name: (ROOT / "packaging" / name).read_text() for name in ("alignd.service", "alignd.socket")}
    units["alignd.service.d/test.conf"] = QUICK
    ask = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:8420/', timeout=60).read().decode())"
    with Sandbox(made.path, units, tmp_path_factory.mktemp("manager") / "log") as sandbox:
        sandbox.run("ip", "link", "set", "lo", "up")
        sandbox.systemctl("start", "alignd.socket")
        page = sandbox.run("env", LIBRARIES, "/opt/alignd/bin/python", "-c", ask)
        assert "in service" in page and 'href="/versions/v0"' in page
        assert (sandbox.show("PrivateNetwork"), sandbox.show("ActiveState")) == ("yes", "active")
        assert oct((made.path / "web-token").stat().st_mode)[-3:] == "600"
