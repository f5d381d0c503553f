"""What is said of a damaged version: one advice, whoever found it, and following it mends the version."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import cli, exitcodes
from daemon.checks import Check
from daemon.exporting import checked_model
from daemon.groundwork import sound_models
from state import durable, verified
from state.errors import StoreCorruptError
from state.store import Store
from tests.command_world import Alignd, usable_base
from tests.state_world import begin, make_version

SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture
def alignd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Alignd:
    home = tmp_path / "home"
    assert cli.main(["init", "--no-trial", str(home), "--model", str(usable_base(tmp_path / "base"))]) == 0
    return Alignd(home, capsys)


@pytest.fixture(autouse=True)
def quick_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.doctor._torch", lambda config: Check("torch", "ok", "not looked for here"))


@pytest.fixture
def store(alignd: Alignd) -> Iterator[Store]:
    with Store.open(alignd.home) as opened:
        make_version(opened, 1)
        make_version(opened, 2)
        yield opened


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def advice_of_export(store: Store, version_id: int) -> str:
    with pytest.raises(StoreCorruptError) as caught, checked_model(store, store.version(version_id)):
        pass
    return caught.value.hint


def advice_of_round(store: Store) -> str:
    row = store.round(begin(store, 9))
    with pytest.raises(StoreCorruptError) as caught, sound_models(store, row):
        pass
    return caught.value.hint


def test_a_rollback_that_checks_stays_where_the_target_is_damaged_and_goes_when_the_advice_was_followed(
    alignd: Alignd, store: Store
) -> None:
    damage(store.model_path(1) / SHARD)
    code, _, err = alignd("rollback", "--check")
    assert code == exitcodes.INTEGRITY and "is not what was written" in err
    assert f"move {store.model_path(1)} away" in " ".join(err.split())
    assert store.current().id == 2 and store.held is None and not store.version(2).blocked
    shutil.rmtree(store.model_path(1))
    assert alignd.json("rollback", "--check")["after"] == "v1"
    assert store.is_materialized(1)


@pytest.mark.parametrize("version_id", [0, 2])
def test_verify_export_and_a_round_give_one_advice(alignd: Alignd, store: Store, version_id: int) -> None:
    damage(store.model_path(version_id) / SHARD)
    findings = alignd.json("verify", code=exitcodes.INTEGRITY)["findings"]
    advice = {item["remedy"] for item in findings if f"/models/v{version_id}/" in item["path"]}
    assert advice == {advice_of_export(store, version_id)} == {advice_of_round(store)}
    assert ("backup" in advice.pop()) if version_id == 0 else ("promote v2" in advice.pop())


def test_a_damaged_model_folder_is_mended_by_the_advice(alignd: Alignd, store: Store) -> None:
    damage(store.model_path(2) / SHARD)
    text = " ".join(alignd.text("verify", code=exitcodes.INTEGRITY).split())
    assert f"-> move {store.model_path(2)} away, then `alignd promote v2 --reason WHY` rebuilds it" in text
    store.model_path(2).rename(alignd.home / "aside")
    assert alignd("verify")[0] == exitcodes.INTEGRITY
    problems = alignd.json("status", code=exitcodes.DEGRADED)["problems"]
    assert any("model folder of v2 is missing; `alignd promote v2" in problem for problem in problems)
    code, out, err = alignd("promote", "v2", "--reason", "mend it")
    assert code == exitcodes.OK and "v2 is in service already" in out
    assert f"its model folder was missing and is rebuilt from v0 and the overlays: {store.model_path(2)}" in err
    assert "written" in alignd.text("verify")
    assert alignd.json("status")["problems"] == []
    assert "missing" not in alignd("promote", "v2", "--reason", "again")[2]


def test_a_version_that_is_not_in_service_is_rebuilt_when_it_is_wanted(alignd: Alignd, store: Store) -> None:
    damage(store.model_path(1) / SHARD)
    assert "it is rebuilt from v0 and the overlays when it is wanted" in advice_of_export(store, 1)
    shutil.rmtree(store.model_path(1))
    assert "written" in alignd.text("verify")
    alignd.json("rollback", "v1")
    assert "written" in alignd.text("verify")


def test_a_rollback_to_the_version_in_service_tells_that_its_folder_is_missing(alignd: Alignd, store: Store) -> None:
    shutil.rmtree(store.model_path(2))
    code, _, err = alignd("rollback", "v2")
    assert code == exitcodes.REFUSED and "its model folder is missing; `alignd promote v2 --reason WHY` rebuilds" in err


def test_a_base_that_is_gone_cannot_be_rebuilt_and_is_named(alignd: Alignd, store: Store) -> None:
    alignd.json("rollback", "v0")
    shutil.rmtree(store.model_path(0))
    code, _, err = alignd("promote", "v0", "--reason", "x")
    assert code == exitcodes.INTEGRITY
    assert f"{store.model_path(0)} is missing; put it back from a backup or the model's source" in err


@pytest.mark.parametrize(
    ("spoilt", "advice"),
    [
        ("store/versions/v1/overlay.safetensors", "`alignd rollback REF`"),
        ("store/versions/v2/VERSION.json", "`alignd rollback REF`"),
        ("store/audit.jsonl", "put it back from a backup"),
        ("store/batches", "`alignd revert`"),
    ],
)
def test_every_finding_says_what_to_do(alignd: Alignd, store: Store, spoilt: str, advice: str) -> None:
    path = alignd.home / spoilt
    damage(next(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else path)
    findings = alignd.json("verify", code=exitcodes.INTEGRITY)["findings"]
    assert findings and all(advice in item["remedy"] for item in findings)


def test_a_link_that_leads_elsewhere_is_pointed_anew_by_the_advice(alignd: Alignd, store: Store) -> None:
    store.current_link.unlink()
    store.current_link.symlink_to("v0")
    (finding,) = alignd.json("verify", code=exitcodes.INTEGRITY)["findings"]
    assert finding["remedy"].startswith("`alignd promote v2 --reason WHY` points it anew")
    alignd.json("promote", "v2", "--reason", "x")
    assert "written" in alignd.text("verify")


# what the last check found


def test_status_and_doctor_tell_of_what_the_last_verify_found_until_one_finds_nothing(
    alignd: Alignd, store: Store
) -> None:
    assert stored_bytes(alignd)["detail"].startswith("not checked yet")
    alignd.text("verify")
    assert stored_bytes(alignd)["status"] == "ok" and "as of" in stored_bytes(alignd)["detail"]
    damage(store.model_path(2) / SHARD)
    alignd.text("verify", code=exitcodes.INTEGRITY)
    (problem,) = alignd.json("status", code=exitcodes.DEGRADED)["problems"]
    assert str(store.model_path(2) / SHARD) in problem and "found by `alignd verify` at" in problem
    assert "then `alignd promote v2" in problem
    check = stored_bytes(alignd)
    assert check["status"] == "bad" and "`alignd promote v2" in check["advice"]
    damage(store.model_path(2) / SHARD)  # the bit is turned back
    assert stored_bytes(alignd)["status"] == "bad"
    alignd.text("verify")
    assert stored_bytes(alignd)["status"] == "ok" and alignd.json("status")["problems"] == []


def stored_bytes(alignd: Alignd) -> dict[str, str]:
    _, out, _ = alignd("--json", "doctor")
    found: dict[str, str] = next(check for check in json.loads(out)["checks"] if check["name"] == "stored bytes")
    return found


def test_a_sample_that_finds_nothing_takes_nothing_back(alignd: Alignd, store: Store) -> None:
    damage(store.model_path(2) / SHARD)
    alignd.text("verify", "--sample", "100", code=exitcodes.INTEGRITY)
    assert stored_bytes(alignd)["status"] == "bad"
    damage(store.model_path(2) / SHARD)
    alignd.text("verify", "--sample", "100")
    assert stored_bytes(alignd)["status"] == "bad"


@pytest.mark.parametrize(
    "text", ["", "[]", '{"at": 1}', "[" * 100_000, '{"at": "", "num_findings": 1, "findings": [1]}']
)
def test_an_unreadable_note_of_the_last_check_is_as_none(alignd: Alignd, store: Store, text: str) -> None:
    (alignd.home / "run").mkdir(exist_ok=True)
    (alignd.home / "run" / "verified.json").write_text(text)
    assert verified.last(alignd.home) is None
    assert alignd.json("status")["problems"] == []


def test_many_findings_are_counted_and_not_all_kept(alignd: Alignd, store: Store) -> None:
    for number in range(verified.MAX_KEPT + 5):
        (store.model_path(2) / f"stray-{number:02}").touch()
    alignd.text("verify", code=exitcodes.INTEGRITY)
    last = verified.last(alignd.home)
    assert last is not None and (len(last.findings), last.num_findings) == (verified.MAX_KEPT, verified.MAX_KEPT + 5)
    assert "stray-00: does not belong to the version, and 24 more" in last.in_short()
    assert last.findings[0].remedy == f"remove {store.model_path(2) / 'stray-00'}"


def test_a_check_on_a_read_only_disk_notes_nothing(
    alignd: Alignd, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "is_read_only", lambda path: True)
    alignd.text("verify")
    assert verified.last(alignd.home) is None


def test_status_names_damage_of_the_version_in_service_first(alignd: Alignd, store: Store) -> None:
    for version_id in (1, 2):
        damage(store.model_path(version_id) / SHARD)
    alignd.json("verify", code=exitcodes.INTEGRITY)
    (problem,) = alignd.json("status", code=exitcodes.DEGRADED)["problems"]
    assert str(store.model_path(2)) in problem and str(store.model_path(1)) not in problem
