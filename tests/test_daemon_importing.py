"""A version of another home: same base or refused, same bytes or refused, and nothing published by itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from daemon import cli, exitcodes
from daemon.importing import bring_in
from daemon.lineage import Lineage, claims, lineage_of, remerge_edits
from daemon.terminal import percent
from state import materialize, overlay, patchfile
from state.digests import Kinds, kind_of
from state.errors import RefusedError, StoreCorruptError
from state.overlay import Edit
from state.store import Store
from state.tensors import ModelFolder
from state.verify import drill, verify
from tests.command_world import Alignd, usable_base
from tests.state_world import NOW, SHAPES, content, make_version, write_model

WHO: Any = {"actor": "tester", "now": NOW}
SHARD = "model-00002-of-00002.safetensors"
SIZES = {name: torch.Size(shape) for name, shape in SHAPES.items()}


@pytest.fixture
def there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Alignd:
    """Another home, with v2 on v1."""
    usable_base(tmp_path / "base")
    assert cli.main(["init", "--no-trial", str(tmp_path / "there"), "--model", str(tmp_path / "base")]) == 0
    with Store.open(tmp_path / "there") as store:
        make_version(store, 1)
        make_version(store, 2, names=("layer.1.weight",))
    return Alignd(tmp_path / "there", capsys)


@pytest.fixture
def alignd(there: Alignd, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Alignd:
    assert cli.main(["init", "--no-trial", str(tmp_path / "home"), "--model", str(tmp_path / "base")]) == 0
    return Alignd(tmp_path / "home", capsys)


@pytest.fixture
def store(alignd: Alignd) -> Iterator[Store]:
    with Store.open(alignd.home) as opened:
        yield opened


@pytest.fixture
def exported(there: Alignd, tmp_path: Path) -> Path:
    there.json("export", "v2", str(tmp_path / "v2"), "--to", "overlay")
    return tmp_path / "v2"


@pytest.mark.parametrize("kind", ["overlay", "home"])
def test_an_import_has_the_bytes_of_the_other_home_and_waits(
    alignd: Alignd, there: Alignd, exported: Path, store: Store, kind: str
) -> None:
    source = exported if kind == "overlay" else there.home
    told = alignd.json("import", str(source), *(["--ref", "v2"] if kind == "home" else []))
    assert (told["id"], told["state"], told["new"], told["source"]["id"]) == ("v1", "awaiting_approval", True, "v2")
    assert content(store.model_path(1)) == content(there.home / "models/v2")
    assert (store.current().id, store.version(1).parent, verify(store, deep=True)) == (0, 0, [])
    assert alignd.json("status")["candidate"] == "v1"
    assert alignd.json("drill", "v1")["ok"]


def test_both_ways_give_the_same_version_and_a_repeat_gives_it_again(
    alignd: Alignd, there: Alignd, exported: Path
) -> None:
    assert alignd.json("import", str(exported))["new"] is True
    again = alignd.json("import", str(there.home))
    assert (again["id"], again["new"]) == ("v1", False)
    assert "is here already, as v1" in alignd.text("import", str(exported))
    assert [view["id"] for view in alignd.json("history")] == ["v0", "v1"]


@pytest.mark.parametrize("older", ["there", "home"])
def test_homes_with_different_digests_take_versions_from_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, older: str
) -> None:
    usable_base(tmp_path / "base")
    for name in ("there", "home"):
        with monkeypatch.context() as patch:
            if name == older:  # as the first stores were begun
                patch.setattr("state.create.Kinds", lambda **_: Kinds("sha256", "sha256"))
            assert cli.main(["init", "--no-trial", str(tmp_path / name), "--model", str(tmp_path / "base")]) == 0
    there, here = (Alignd(tmp_path / name, capsys) for name in ("there", "home"))
    with Store.open(there.home) as store:
        make_version(store, 1)
    there.json("export", "v1", str(tmp_path / "v1"), "--to", "overlay")
    here.json("import", str(tmp_path / "v1"))
    assert here.json("import", str(there.home))["new"] is False
    with Store.open(here.home) as store:
        assert content(store.model_path(1)) == content(there.home / "models/v1")
        assert kind_of(store.version_record(1)["files"]) == ("sha256" if older == "home" else "blake3")
        assert (verify(store, deep=True), drill(store, [0, 1], tmp_path / "drill")) == ([], [])


def test_what_is_damaged_while_it_is_exported_is_never_taken_for_the_version(
    alignd: Alignd, there: Alignd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = materialize.edits_on_base

    def checked_then_damaged(store: Store, number: int) -> Any:
        found = real(store, number)
        _flip(store.overlay_path(number))
        return found

    monkeypatch.setattr(materialize, "edits_on_base", checked_then_damaged)
    there.json("export", "v1", str(tmp_path / "v1"), "--to", "overlay")
    code, _, err = alignd("import", str(tmp_path / "v1"))
    assert code == exitcodes.INTEGRITY and "does not come out as overlay.json says" in err


def test_of_two_that_wait_one_is_rejected_and_the_other_told(alignd: Alignd, there: Alignd) -> None:
    for ref in ("v1", "v2"):
        alignd.json("import", str(there.home), "--ref", ref)
    code, out, err = alignd("reject")
    assert (code, out) == (0, "v2 is rejected\n") and "still to be decided: v1" in err
    assert "still" not in alignd("reject")[2]


def test_audit_history_and_show_say_where_it_came_from(alignd: Alignd, exported: Path) -> None:
    alignd.json("import", str(exported))
    line = alignd.json("audit")[-1]
    assert (line["action"], line["subject"], line["actor"]) == (
        "version_imported",
        "v1",
        alignd.json("audit")[0]["actor"],
    )
    assert (line["details"]["path"], line["details"]["id"]) == (str(exported), "v2")
    assert "v2 from" in alignd.text("audit")
    assert alignd.json("history")[-1]["imported"] is True and "imported" in alignd.text("history")
    shown = alignd.json("show", "v1")
    assert [row["id"] for row in shown["source"]["lineage"]] == ["v0", "v1", "v2"]
    assert shown["metrics"]["harm_rate"] is None
    text = alignd.text("show", "v1")
    assert "as measured where it was made" in text and "another home made it" in text
    assert max(map(len, text.splitlines())) <= 80 + len(str(exported))


def test_it_is_published_by_approval_whatever_is_current_and_rolled_back(
    alignd: Alignd, exported: Path, store: Store
) -> None:
    make_version(store, 7)
    alignd.json("import", str(exported))
    assert alignd.json("approve")["after"] == "v2"
    assert store.current_link.readlink().name == "v2"
    assert alignd.json("rollback")["after"] == "v1"
    assert store.version(2).blocked and verify(store) == []


def test_it_is_not_published_while_held(alignd: Alignd, exported: Path, store: Store) -> None:
    make_version(store, 7)
    store.rollback("v0", reason="bad", **WHO)
    alignd.json("import", str(exported))
    assert alignd("approve")[0] == exitcodes.REFUSED
    alignd.json("promote", "v2", "--force", "--reason", "looked at")
    assert store.current().id == 2


def test_it_may_be_rejected(alignd: Alignd, exported: Path, store: Store) -> None:
    alignd.json("import", str(exported))
    alignd.json("reject", "--reason", "no")
    assert (store.version(1).state, store.current().id) == ("rejected", 0)


def test_another_base_is_refused_by_the_file_that_differs(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = usable_base(tmp_path / "other")
    shutil.rmtree(base)
    write_model(base, seed=1)
    (base / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert cli.main(["init", "--no-trial", str(tmp_path / "o"), "--model", str(base)]) == 0
    code, _, err = Alignd(tmp_path / "o", capsys)("import", str(exported))
    assert code == exitcodes.REFUSED
    assert "model-00001-of-00002.safetensors is not that of this home's v0" in err
    assert not list((tmp_path / "o").glob(".tmp-*"))


def _flip(path: Path) -> None:
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _resign(folder: Path, change: dict[str, Edit]) -> None:
    """Another overlay, with its own digest in the manifest."""
    told = json.loads((folder / "overlay.json").read_text())
    (folder / "overlay.safetensors").unlink()
    told["overlay"]["sha256"] = overlay.write(folder / "overlay.safetensors", change, {"parent": "v0"})
    (folder / "overlay.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"layer.0.weight": Edit(np.array([3]), np.array([5], np.uint16))}, "does not come out as overlay.json says"),
        ({"layer.9.weight": Edit(np.array([3]), np.array([5], np.uint16))}, "has no tensor layer.9.weight"),
        ({"layer.0.weight": Edit(np.array([9999]), np.array([5], np.uint16))}, "a position outside its 128 entries"),
        ({"layer.0.weight": Edit(np.array([3]), np.array([5], np.uint32))}, "values are uint32"),
    ],
)
def test_an_overlay_that_gives_something_else_is_refused(
    alignd: Alignd, exported: Path, change: dict[str, Edit], what: str
) -> None:
    _resign(exported, change)
    code, _, err = alignd("import", str(exported))
    assert code == exitcodes.INTEGRITY and what in err
    assert [view["id"] for view in alignd.json("history")] == ["v0"]
    assert not list(alignd.home.glob(".tmp-*"))


def test_a_flipped_byte_is_found(alignd: Alignd, exported: Path) -> None:
    _flip(exported / "overlay.safetensors")
    code, _, err = alignd("import", str(exported))
    assert code == exitcodes.INTEGRITY and "is not what overlay.json says" in err


def test_weights_that_are_not_finite_are_refused(alignd: Alignd, store: Store, exported: Path) -> None:
    change = {"layer.0.weight": Edit(np.array([3]), np.array([0x7FC0], np.uint16))}
    _resign(exported, change)
    from state.materialize import digests_of

    told = json.loads((exported / "overlay.json").read_text())
    told["result"]["files"] = digests_of(
        ModelFolder.open(store.model_path(0)), change, Kinds("sha256", tensors=None)
    ).files
    (exported / "overlay.json").write_text(json.dumps(told))
    code, _, err = alignd("import", str(exported))
    assert code == exitcodes.CONFIG and "holds NaN or infinity" in err


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "zorp"}', "\x00", '{"format": 1, "format_version": "1"}', "9" * 5000]
)
def test_a_manifest_that_is_none_is_named(alignd: Alignd, exported: Path, text: str) -> None:
    (exported / "overlay.json").write_text(text)
    code, _, err = alignd("import", str(exported))
    assert code == exitcodes.CONFIG and "overlay.json" in err


def test_a_later_format_and_a_link_are_refused(alignd: Alignd, exported: Path) -> None:
    told = json.loads((exported / "overlay.json").read_text())
    (exported / "overlay.json").write_text(json.dumps(told | {"format_version": 3}))
    assert alignd("import", str(exported))[0] == exitcodes.CONFIG
    (exported / "overlay.json").write_text(json.dumps(told))
    (exported / "overlay.safetensors").rename(exported / "real")
    (exported / "overlay.safetensors").symlink_to("real")
    assert alignd("import", str(exported))[0] == exitcodes.FAILED


@pytest.mark.parametrize("path", ["nowhere", "base"])
def test_what_is_neither_home_nor_overlay_is_not_found(alignd: Alignd, tmp_path: Path, path: str) -> None:
    code, _, err = alignd("import", str(tmp_path / path))
    assert code == exitcodes.NOT_FOUND and "neither a home nor an exported overlay" in err


def test_names_of_another_home_obey_no_terminal(alignd: Alignd, exported: Path) -> None:
    told = json.loads((exported / "overlay.json").read_text())
    told["version"]["id"] = "v2\x1b[31m"
    told["version"]["axes"] = [{"axis": "a\x1b[31m", "this": {"value": 0.5}}]
    (exported / "overlay.json").write_text(json.dumps(told))
    for words in (["import", str(exported)], ["show", "v1"], ["history"], ["audit"]):
        assert "\x1b" not in alignd.text(*words)


# what rounds build on


def _round_on(store: Store, seed: int, parent: int) -> str:
    """A patch file on a version; its digest."""
    rng = np.random.default_rng(seed)
    indices = np.sort(rng.choice(128, 9, replace=False)).astype(np.int64)
    return patchfile.save(store, {"layer.0.weight": (indices, rng.normal(size=9).astype(np.float32))}, {"r": str(seed)})


def test_rounds_after_an_import_are_merged_into_it_again_and_not_into_the_base(
    alignd: Alignd, exported: Path, store: Store
) -> None:
    alignd.json("import", str(exported))
    alignd.json("approve")
    make_version(store, 7)
    assert lineage_of(store, 2) == Lineage((), (), 1)
    assert lineage_of(store, 0) == Lineage((), (), 0)
    recipe = Lineage((_round_on(store, 1, 1),), ("b",), 1)
    imported = ModelFolder.open(store.model_path(1))
    edits = remerge_edits(store, recipe, imported)
    assert edits.keys() == {"layer.0.weight"}
    assert remerge_edits(store, recipe.without(recipe.patches[0]), imported) == {}
    assert recipe.to_dict()["ground"] == "v1"


def test_what_an_import_changed_is_claimed_by_both_kinds(alignd: Alignd, exported: Path, store: Store) -> None:
    alignd.json("import", str(exported))
    found = claims(store, lineage_of(store, 1), SIZES)
    changed = overlay.read(store.overlay_path(1))
    for name, masks in found.items():
        assert all(mask.flatten().nonzero().flatten().tolist() == changed[name].indices.tolist() for mask in masks)
    assert found.keys() == set(changed)
    assert claims(store, lineage_of(store, 1), {"embed.weight": SIZES["embed.weight"]}) == {}
    assert claims(store, lineage_of(store, 0), SIZES) == {}


def test_a_damaged_overlay_of_an_import_is_not_merged_into(alignd: Alignd, exported: Path, store: Store) -> None:
    alignd.json("import", str(exported))
    _flip(store.overlay_path(1))
    with pytest.raises(StoreCorruptError, match="is not what was written"):
        remerge_edits(store, Lineage((), (), 1), ModelFolder.open(store.model_path(1)))


def test_the_report_of_an_import_says_where_it_came_from_and_what_was_measured_there(
    alignd: Alignd, exported: Path, store: Store, tmp_path: Path
) -> None:
    alignd.json("import", str(exported))
    alignd.json("report", "v1", "--out", str(tmp_path / "v1.html"))
    page = (tmp_path / "v1.html").read_text()
    assert f"v2 from {exported}" in page and "As it was measured there" in page
    measured = [axis for axis in store.version_record(1)["imported"]["axes"] if axis["value"] is not None]
    section = page.partition('id="identity"')[2].partition("</section>")[0]
    assert measured and all(f">{percent(axis['value'])}</td>" in section for axis in measured)


def test_an_import_has_no_round_to_take_out(alignd: Alignd, exported: Path, store: Store) -> None:
    alignd.json("import", str(exported))
    alignd.json("approve")
    code, _, err = alignd("revert", "v1")
    assert code == exitcodes.REFUSED and "was imported" in err
    row = make_version(store, 7)
    with pytest.raises(RefusedError, match=r"the only round in v2: without it the model is v1, which was imported"):
        _revert_only(store, row.id)


def _revert_only(store: Store, number: int) -> None:
    """As if the version's recipe were its one patch: the tiny store keeps no patches."""
    record = store.version_record(number)
    store.version_record = lambda _: record | {"lineage": {"patches": [None]}}  # type: ignore[method-assign, assignment]
    store.request_revert(f"v{number}", reason="", **WHO)


def test_an_import_beside_a_service_takes_the_next_number(alignd: Alignd, exported: Path, store: Store) -> None:
    make_version(store, 7)
    found = bring_in(store, exported, "current", **WHO)
    assert (found.row.name, found.row.is_import, store.version(1).is_import) == ("v2", True, False)
    assert make_version(store, 8).name == "v3"
