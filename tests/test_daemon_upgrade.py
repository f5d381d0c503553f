"""An older alignd's store under the commands and the service of this one."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon import exitcodes
from daemon.service import Service
from state import lock
from state.schema import SCHEMA_NUMBER
from state.store import Store
from tests.command_world import Alignd
from tests.fakes_service import FakeWorker, fast_config
from tests.old_stores import unpacked

COPY = Path("store", "ledger-schema-1.db")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that an older program was killed in."""
    home = unpacked(tmp_path)
    (home / "service.toml").write_text("")
    return home


@pytest.fixture
def alignd(home: Path, capsys: pytest.CaptureFixture[str]) -> Alignd:
    return Alignd(home, capsys)


@pytest.mark.parametrize("words", [["status"], ["history"], ["verify"], ["rollback", "v0"], ["gc", "--dry-run"]])
def test_every_other_command_on_an_old_store_names_the_one_that_helps(
    alignd: Alignd, home: Path, words: list[str]
) -> None:
    code, out, err = alignd(*words)
    assert (code, out) == (exitcodes.OTHER_SCHEMA, "")
    assert f"has schema 1, and this alignd works with schema {SCHEMA_NUMBER}" in err
    assert "`alignd upgrade` brings it up to date, and so does a start of the service" in err
    assert not (home / COPY).exists()


def test_upgrade_says_what_it_did_and_the_others_work_then(alignd: Alignd, home: Path) -> None:
    text = alignd.text("upgrade")
    assert f"the store has schema {SCHEMA_NUMBER}; it had 1" in text and str(home / COPY) in text
    assert "confirmed" in text
    assert [row["id"] for row in alignd.json("history")][:2] == ["v0", "v1"]
    alignd.text("verify", "--deep")
    assert (
        alignd.json("audit")[0]["action"] == "store_upgraded" or alignd.json("audit")[-1]["action"] == "store_upgraded"
    )
    assert (
        alignd.text("upgrade").strip()
        == f"nothing to do: the store has schema {SCHEMA_NUMBER}, as this alignd wants it"
    )


def test_upgrade_in_json(alignd: Alignd, home: Path) -> None:
    done = alignd.json("upgrade")
    assert (done["upgraded"], done["before"], done["after"]) == (True, 1, SCHEMA_NUMBER)
    assert done["copy"] == str(home / COPY) and len(done["changes"]) == SCHEMA_NUMBER - 1
    again = alignd.json("upgrade")
    assert again == {"upgraded": False, "before": SCHEMA_NUMBER, "after": SCHEMA_NUMBER, "copy": None, "changes": []}


def test_no_store_is_upgraded_under_a_running_service(alignd: Alignd, home: Path) -> None:
    with lock.hold(home / "store" / "service.lock", "alignd run"):
        code, _, err = alignd("upgrade")
    assert code == exitcodes.LOCKED and "alignd run" in err
    assert not (home / COPY).exists()


def test_beside_a_running_service_there_is_nothing_to_do_on_a_store_of_today(alignd: Alignd, home: Path) -> None:
    alignd.json("upgrade")
    with lock.hold(home / "store" / "service.lock", "alignd run"):
        assert alignd.json("upgrade")["upgraded"] is False


def test_where_there_is_no_store_upgrade_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = Alignd(tmp_path, capsys)("upgrade")
    assert code == exitcodes.NO_STORE and "has no store" in err


def test_doctor_names_the_command_too(alignd: Alignd, home: Path) -> None:
    code, out, _ = alignd("doctor")
    assert code == exitcodes.DEGRADED and "`alignd upgrade`" in " ".join(out.split())


def test_a_start_of_the_service_upgrades_and_logs_it(home: Path, tmp_path: Path) -> None:
    with capture_logs() as logs:
        Service(home, fast_config(), once=True, argv=FakeWorker(tmp_path / "worker", home).argv, tick_s=0.1).run()
    (event,) = [entry for entry in logs if entry["event"] == "store_upgraded"]
    assert (event["before"], event["after"], event["copy"]) == (1, SCHEMA_NUMBER, str(home / COPY))
    with Store.open(home) as store:
        assert store.current().name == "v1"


def test_a_service_on_a_newer_store_ends_with_the_code_that_no_restart_follows(home: Path, tmp_path: Path) -> None:
    Store.upgrade(home, actor="tester", now="2026-01-02T03:04:05Z")
    with pytest.MonkeyPatch.context() as patch, capture_logs() as logs:
        patch.setattr("state.ledger.SCHEMA_NUMBER", 1)
        patch.setattr("state.upgrade.SCHEMA_NUMBER", 1)
        code = Service(
            home, fast_config(), once=True, argv=FakeWorker(tmp_path / "worker", home).argv, tick_s=0.1
        ).run()
    assert code == exitcodes.OTHER_SCHEMA
    assert [entry["event"] for entry in logs] == ["service_failed"] and "newer alignd" in logs[0]["hint"]
    unit = (Path(__file__).resolve().parent.parent / "packaging" / "alignd.service").read_text()
    assert f" {exitcodes.OTHER_SCHEMA} " in next(line for line in unit.splitlines() if "PreventExitStatus" in line)
