"""Every list fits 80 columns, whatever droppers call their batches, and obeys nobody's control characters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import cli, live
from daemon.command import Context, service_file_of
from daemon.terminal import Style, width
from state.store import Store
from state.text import printable
from tests.command_world import Alignd, usable_base
from tests.state_world import NOW, drop, prepare

NAMES = [
    printable(name)
    for name in (
        "a" * 150 + ".jsonl",
        "esc\x1b[2J\nape.jsonl",
        "日本語の名前" * 9 + ".jsonl",
        "with space.jsonl",
        "bad\udc80utf.jsonl",
        "-dash.jsonl",
        "e\u0301" * 60 + "\u202eright-to-left.jsonl",
    )
]
WHO: Any = {"actor": "a-user-with-a-rather-long-name", "now": NOW}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One batch of each name in every state, and drops of that name that never became a batch."""
    folder = tmp_path_factory.mktemp("columns")
    assert cli.main(["init", "--no-trial", str(folder / "home"), "--model", str(usable_base(folder / "base"))]) == 0
    with Store.open(folder / "home") as store:
        _fill(store)
    yield folder / "home"


def _fill(store: Store) -> None:
    for seed, name in enumerate(NAMES):
        _version(store, seed, name)
        store.set_aside(drop(store, "x", f"{seed:032x}{name[:100]}"), name=name, reason=f"no file: {name}", **WHO)
        store.quarantine_batch(_claim(store, 100 + seed, name), reason=f"{name}: no JSON {'z' * 200}", **WHO)
        _claim(store, 200 + seed, name)
        store.claim_batch(drop(store, "zorp 0\n", f"again{seed}"), name=f"again-{name}", **WHO)
    store.rollback("v5", reason=" ".join(NAMES), **WHO)
    store.pause(reason=" ".join(NAMES), **WHO)


def _claim(store: Store, seed: int, name: str) -> str:
    return store.claim_batch(drop(store, f"zorp {seed}\n", f"drop{seed}"), name=name, **WHO).batch.sha256


def _version(store: Store, seed: int, name: str) -> None:
    sha256 = _claim(store, seed, name)
    round_id = store.begin_round(sha256, config={"seed": seed}, now=NOW).id
    arguments = prepare(store, round_id, seed)
    categories = {name: 0.2, "c" * 100: 0.3, "x\x1b[2J": 0.1}
    rates = {"harm_rate": 0.123, "over_refusal_rate": 0.5, "utility": 0.999, "harm_by_batch": {sha256[:12]: 0.1}}
    arguments["record"]["metrics"] = {**rates, "standing_harm_by_category": categories}
    store.commit_version(round_id, **arguments, state="published", now=NOW)
    store.tag(f"{'t' * 60}{seed}", "current", **WHO)


LISTS = [
    "status", "history", "batches", "audit", "quarantine list", "serving", "gc --dry-run --keep 0", "verify", "drill",
    "diff v1 v7", *(f"show v{number}" for number in range(8)), *(f"show r00000{number}" for number in range(1, 8)),
]  # fmt: skip


@pytest.mark.parametrize("words", LISTS)
def test_a_list_fits_80_columns(home: Path, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    alignd = Alignd(home, capsys)
    code, out, _ = alignd(*words.split())
    lines = [line for line in out.splitlines() if str(home) not in line]  # paths are left whole, to be copied
    assert code in (0, 3) and lines
    assert [line for line in lines if width(line) > 80] == []
    assert [char for char in out if not (char.isprintable() or char == "\n")] == []


def test_what_is_known_of_each_batch_and_entry_fits_80_columns(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alignd = Alignd(home, capsys)
    ids = [view["sha256"] for view in alignd.json("batches")]
    ids += [view["id"] for view in alignd.json("quarantine", "list")]
    for name in ids:
        assert max(map(width, alignd.text("show", name).splitlines())) <= 80, name


def test_the_live_view_fits_80_columns(home: Path) -> None:
    with Store.open(home) as store:
        frame = live.frame_of(Context(service_file_of(str(home))), store, live.newest_versions(store))
    lines = live.frame_lines(frame, Style())
    assert lines and max(map(width, lines)) <= 80


def test_a_batch_and_a_drop_have_one_short_id_and_one_name_in_every_list(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alignd = Alignd(home, capsys)
    listed, trail = alignd.text("quarantine", "list"), alignd.text("audit")
    batches = alignd.text("batches")
    for entry in alignd.json("quarantine", "list"):
        short = entry["id"][:12]
        assert f"\n{short}  " in f"\n{listed}" and f"  {short}\n" in trail
        assert entry["batch"] is None or f"\n{short}  " in batches
    assert "esc\\x1b[2J\\nape.jsonl" in listed and "esc\\x1b[2J\\nape.jsonl" in batches
    assert "?" not in listed + batches


def test_the_short_id_of_a_drop_is_taken_where_its_whole_id_is(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alignd = Alignd(home, capsys)
    drops = [entry["id"] for entry in alignd.json("quarantine", "list") if entry["batch"] is None]
    assert alignd.json("show", drops[0])["id"] == drops[0]
    code, _, err = alignd("quarantine", "release", drops[0][:12])  # all seven begin alike
    assert code == 4 and f"{len(drops)} quarantined entries are called" in err
