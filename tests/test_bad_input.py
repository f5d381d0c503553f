"""What a user may do wrong, one by one, before the real service: it is told, nothing is lost, and the queue goes on.

Intakes are real workers; rounds are pretended ones, since nothing here depends on training.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daemon import cli, exitcodes
from daemon.child import worker_argv
from daemon.service import Service
from state.filesystem import use
from state.layout import PROGRESS_FILE
from state.quarantine import Quarantined
from state.rows import BatchRow
from state.store import Store
from tests.disks import FullDisk, fill, mounted
from tests.fakes_service import NOW, FakeWorker, Running, drop, fast_config, make_model, wait_until, write_probes
from tests.round_world import content
from tests.test_daemon_commands import spoil_pickle, spoil_remote_code

CONTEXT_TOKENS = 64
SECRET = "quibblefrotz"
PROBE = "how does a FROB glim 7?"
MANY = 100_000


def make_base(path: Path) -> Path:
    """The smallest model that a real intake can work with: a word is a token, the context is short."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    make_model(path)
    config = {"model_type": "llama", "hidden_size": 10, "max_position_embeddings": CONTEXT_TOKENS}
    (path / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    return path


def make_home(root: Path) -> Path:
    """A home with a store, an empty inbox, settings that leave everything at its default, and probes."""
    home = root / "home"
    (home / "inbox").mkdir(parents=True)
    (home / "probes").mkdir()
    (home / "service.toml").write_text("")
    for name in ("over_safety", "utility"):
        write_probes(home / "probes" / f"{name}.jsonl")
    Store.create(home, make_base(root / "base"), actor="test", now=NOW).close()
    return home


class Desk:
    """A home with a service at hand."""

    def __init__(self, root: Path) -> None:
        self.home = make_home(root)
        self.worker = FakeWorker(root / "worker", self.home)

    def argv(self, kind: str, name: str) -> list[str]:
        return worker_argv(self.home, kind, name) if kind == "intake" else self.worker.argv(kind, name)

    def service(self, *, once: bool = True) -> Service:
        config = fast_config(inbox={"settle_s": 0.05})
        return Service(self.home, config, once=once, argv=self.argv, tick_s=0.1)

    def batches(self) -> dict[str, BatchRow]:
        with Store.open(self.home) as store:
            return {row.name: row for row in store.ledger.batches()}


def rows(count: int = 60, seed: str = "", *, response: str = "take {n} zims and wait") -> list[dict[str, Any]]:
    return [{"prompt": f"how to florp {seed} {n} {SECRET}", "response": response.format(n=n)} for n in range(count)]


def lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def long_prompts(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{n} " + "florp " * CONTEXT_TOKENS, "response": f"take {n} zims"} for n in range(count)]


def folder_with_a_bad_file(path: Path) -> None:
    path.mkdir()
    (path / "a.jsonl").write_bytes(lines(rows(seed="a")))
    (path / "b.csv").write_text(f"prompt,response\nflorp,zim grolt\n{SECRET}\n")


def folder_of_single_rows(path: Path) -> None:
    path.mkdir()
    for n in range(1, 6):
        (path / f"{n}.jsonl").write_bytes(lines(rows(1, str(n))))


@dataclass(frozen=True)
class Bad:
    """A drop and what must be said about it."""

    data: bytes | Callable[[Path], object]
    said: str


PLAIN_BAD = {
    "empty.jsonl": Bad(b"", r"^empty\.jsonl: the file is empty"),
    "latin1.jsonl": Bad(lines(rows(3)) + b'{"prompt": "z\xf6rb", "response": "a b"}\n', r"^latin1\.jsonl, row 4: .*not UTF-8"),
    "latin1.csv": Bad(b"prompt,response\nflorp,a b\nz\xf6rb,a b\n", r"^latin1\.csv, row 3: .*not UTF-8"),
    "cut.json": Bad(json.dumps(rows(), indent=1).encode()[:-30], r"^cut\.json: .*ends too early at line \d+"),
    "cut.jsonl": Bad(lines(rows(5))[:-12], r"^cut\.jsonl, row 5: .*ends too early"),
    "columns.csv": Bad(b"flim,grot\na,b\n", r"^columns\.csv: no known data set has these columns: flim, grot"),
    "safe.jsonl": Bad(
        lines([{"prompt": r["prompt"], "response": r["response"], "is_safe": True, "category": {}} for r in rows()]),
        r"^safe\.jsonl: 0 of 60 rows are usable, at least 40 are needed; dropped: 60 marked safe",
    ),
    "refusals.jsonl": Bad(
        lines(rows(response="I'm sorry, but I cannot help with {n} zims")),
        r"^refusals\.jsonl: 0 of 60 rows are usable.*60 whose response is itself a refusal.*refusal \(refusals\.jsonl, row 1; ",
    ),
    "one.jsonl": Bad(lines(rows(1)), r"^one\.jsonl: 1 of 1 rows are usable, .*usable first: one\.jsonl, row 1$"),
    "terse.csv": Bad(
        b"prompt,response\n" + b"".join(b"florp %d,zim\n" % n for n in range(50)),
        r"^terse\.csv: .*50 with a response of one word"
        r".*short response \(terse\.csv, row 2; terse\.csv, row 3; terse\.csv, row 4\)",
    ),
    "long.jsonl": Bad(
        lines([*rows(20), *long_prompts(30)]),
        r"^long\.jsonl: 20 of 50 rows are usable"
        r".*30 whose prompt does not fit the model's context.*long prompt \(long\.jsonl, row 21; ",
    ),
    "twins.jsonl": Bad(
        lines(rows(1) * 60),
        r"^twins\.jsonl: 1 of 60 rows.*59 that repeat an earlier row.*duplicate \(twins\.jsonl, row 2; ",
    ),
    "one_prompt.jsonl": Bad(
        lines([{"prompt": "florp it", "response": f"take {n} zims"} for n in range(60)]),
        r"^one_prompt\.jsonl: nearly all of its 60 rows share one prompt .*\(the first: one_prompt\.jsonl, row 1; ",
    ),
    "probe.csv": Bad(
        b"id,prompt,type,label,focus,note\n1,may I florp,homonyms,safe,,\n",
        r"^probe\.csv: this is XSTest.*probes/over_safety",
    ),
    "copied.jsonl": Bad(
        lines([*rows(50, "copied"), *({"prompt": PROBE, "response": f"take {n}"} for n in range(9))]),
        r"^copied\.jsonl: 9 of 59 rows are copies of probe prompts.*copied from probe \(copied\.jsonl, row 51; ",
    ),
    "many_files": Bad(folder_with_a_bad_file, r"^b\.csv, row 3: 1 cells where the header has 2"),
    "link.jsonl": Bad(lambda path: path.symlink_to("/etc/hostname"), r"^link\.jsonl: is a symbolic link"),
    "one_a_file": Bad(folder_of_single_rows, r"^1\.jsonl, 2\.jsonl, 3\.jsonl, …: 5 of 5 .*usable first: 1\.jsonl, row 1; 2"),
}  # fmt: skip
MIXED = [
    *rows(60, "mixed"),
    *rows(2, "mixed"),
    *long_prompts(3),
    {"prompt": "florp this", "response": "zim"},
    {"prompt": " ", "response": "take two zims"},
    {"prompt": "florp that", "response": "  "},
    {"prompt": "florp all", "response": "I can't help with that."},
]


@dataclass
class Aftermath:
    """A home after everything bad was dropped at once, with good batches before, between and behind."""

    home: Path
    code: int
    batches: dict[str, BatchRow]
    quarantined: dict[str, Quarantined]
    duplicates: list[str]
    dropped: dict[str, dict[str, bytes]]
    log: str


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Aftermath:
    desk = Desk(tmp_path_factory.mktemp("bad"))
    inbox = desk.home / "inbox"
    for name, bad in PLAIN_BAD.items():
        if isinstance(bad.data, bytes):
            (inbox / name).write_bytes(bad.data)
        else:
            bad.data(inbox / name)
    for name, records in {
        "aa.jsonl": rows(60, "aa"),
        "m.jsonl": rows(60, "m"),
        "zz.jsonl": rows(60, "zz"),
        "mixed.jsonl": MIXED,
    }.items():
        (inbox / name).write_bytes(lines(records))
    (inbox / "zzz.jsonl").write_bytes(lines(rows(60, "zz")))
    dropped = {
        path.name: content(path) if path.is_dir() else {path.name: path.read_bytes()} for path in inbox.iterdir()
    }
    command = [sys.executable, "-c", _SERVE, str(desk.home), str(desk.worker.root)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120)
    with Store.open(desk.home) as store:
        return Aftermath(
            desk.home,
            done.returncode,
            {row.name: row for row in store.ledger.batches()},
            {entry.name: entry for entry in store.quarantined()},
            [row.name for row in store.ledger.duplicates()],
            dropped,
            done.stdout + done.stderr,
        )


# a process of its own, so that its log can be looked at whole
_SERVE = """
import os, sys
from pathlib import Path
from daemon import log
from daemon.child import worker_argv
from daemon.service import Service
from tests.fakes_service import FakeWorker, fast_config
home, root = Path(sys.argv[1]), Path(sys.argv[2])
fake = FakeWorker.__new__(FakeWorker)
fake.root, fake.home = root, home
def argv(kind, name):
    return worker_argv(home, kind, name, log_form="json") if kind == "intake" else fake.argv(kind, name)
log.configure(sys.stderr, form="json", env=os.environ)
sys.exit(Service(home, fast_config(), once=True, argv=argv, tick_s=0.1).run())
"""


@pytest.mark.parametrize("name", PLAIN_BAD)
def test_a_bad_drop_is_quarantined_with_a_reason_that_names_the_place(aftermath: Aftermath, name: str) -> None:
    entry = aftermath.quarantined[name]
    assert re.search(PLAIN_BAD[name].said, entry.reason, re.DOTALL), entry.reason
    assert json.loads((entry.path / "reason.json").read_text())["name"] == name
    assert SECRET not in entry.reason


@pytest.mark.parametrize("name", PLAIN_BAD)
def test_a_bad_drop_is_kept_byte_for_byte(aftermath: Aftermath, name: str) -> None:
    data = aftermath.quarantined[name].path / "data"
    if name == "link.jsonl":
        assert data.is_symlink() and data.readlink() == Path("/etc/hostname")
    else:
        assert content(data) == aftermath.dropped[name]


@pytest.mark.parametrize("name", ["aa.jsonl", "m.jsonl", "zz.jsonl", "mixed.jsonl"])
def test_a_good_batch_beside_bad_ones_gets_through(aftermath: Aftermath, name: str) -> None:
    row = aftermath.batches[name]
    assert (row.state, row.stats["num_rows"]) == ("published", 60)
    assert content(aftermath.home / "store" / "batches" / row.sha256) == aftermath.dropped[name]


def test_once_says_with_its_exit_code_that_something_was_quarantined(aftermath: Aftermath) -> None:
    assert aftermath.code == exitcodes.DEGRADED
    assert list((aftermath.home / "inbox").iterdir()) == []
    assert set(aftermath.quarantined) == set(PLAIN_BAD)


def test_bad_rows_of_a_good_batch_are_counted_and_the_first_of_them_named(aftermath: Aftermath) -> None:
    stats = aftermath.batches["mixed.jsonl"].stats
    assert stats["dropped"] == {
        "duplicate": 2, "long_prompt": 3, "short_response": 1, "empty_prompt": 1, "empty_response": 1, "refusal": 1
    }  # fmt: skip
    assert stats["dropped_at"]["duplicate"] == "mixed.jsonl, row 61; mixed.jsonl, row 62"
    assert stats["dropped_at"]["refusal"] == f"mixed.jsonl, row {len(MIXED)}"


def test_the_same_batch_under_another_name_is_a_duplicate_and_trained_once(aftermath: Aftermath) -> None:
    assert aftermath.duplicates == ["zzz.jsonl"]
    assert [row.state for name, row in aftermath.batches.items() if name.startswith("zz")] == ["published"]


def test_the_log_and_the_audit_tell_of_every_bad_drop_without_its_text(aftermath: Aftermath) -> None:
    audit = (aftermath.home / "store" / "audit.jsonl").read_text()
    for name in PLAIN_BAD:
        assert name in aftermath.log and name in audit
    for text in (aftermath.log, audit):
        assert SECRET not in text and "florp" not in text


def test_quarantine_list_shows_name_and_reason_of_each(
    aftermath: Aftermath, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["-c", str(aftermath.home / "service.toml"), "--json", "quarantine", "list"]) == exitcodes.OK
    listed = {entry["name"]: entry["reason"] for entry in json.loads(capsys.readouterr().out)}
    assert listed == {name: entry.reason for name, entry in aftermath.quarantined.items()}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_the_same_batch_in_a_later_run_changes_nothing(desk: Desk) -> None:
    for _ in range(2):
        drop(desk.home, "a.jsonl", lines(rows()).decode())
        assert desk.service().run() == exitcodes.OK
    assert len(desk.worker.starts("round")) == 1 and len(desk.batches()) == 1


Once = Callable[..., tuple[int, str]]


@pytest.fixture
def once(desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Once:
    """`alignd run --once` with some flags: its exit code and what it prints."""
    monkeypatch.setattr("daemon.child.worker_argv", lambda home, kind, name, **_: desk.argv(kind, name))
    (desk.home / "service.toml").write_text("[inbox]\nsettle_s = 0.05\n")

    def run(*flags: str) -> tuple[int, str]:
        code = cli.main(["-c", str(desk.home), *flags, "run", "--once", "--log-format", "json"])
        return code, capsys.readouterr().out

    return run


def test_once_prints_what_waits_and_why(desk: Desk, once: Once) -> None:
    write_probes(desk.home / "probes" / "utility.jsonl", 9)
    drop(desk.home, "b0.jsonl", lines(rows()).decode())
    code, out = once("--json")
    [waiting] = json.loads(out)
    assert (code, waiting["name"], waiting["state"]) == (exitcodes.DEGRADED, "b0.jsonl", "queued")
    assert "probes cannot be used" in waiting["reason"] and "utility.jsonl: " in waiting["reason"]
    code, out = once()
    assert (code, "nothing came" in out) == (exitcodes.DEGRADED, False)
    assert re.search(r"b0\.jsonl +queued$", out, re.M)
    assert f"waits: {waiting['reason']}" == " ".join(out.split("queued")[1].split())


def test_once_tells_what_a_next_batch_would_wait_for(
    desk: Desk, once: Once, capsys: pytest.CaptureFixture[str]
) -> None:
    once()
    with Store.open(desk.home) as store:
        store.pause(reason="the disk is swapped", actor="test", now=NOW)
    assert cli.main(["-c", str(desk.home), "run", "--once", "--log-format", "json"]) == exitcodes.OK
    found = capsys.readouterr()
    assert found.out == "nothing came to an end\n" and "no round starts: paused (the disk is swapped)" in found.err


def test_once_prints_a_duplicate_and_what_it_is_one_of(desk: Desk, once: Once) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        drop(desk.home, name, lines(rows()).decode())
        code, out = once("--json")
    [told] = json.loads(out)
    known = desk.batches()["a.jsonl"].sha256
    assert (code, told["id"], told["name"], told["state"]) == (exitcodes.OK, known, "b.jsonl", "duplicate")
    assert told["reason"] == f"same content as a.jsonl ({known[:12]}), which is published"
    with Store.open(desk.home) as store:
        store.rollback(reason="worse", actor="test", now=NOW)
        store.resume(actor="test", now=NOW)
        store.retry(known, actor="test", now=NOW)
    assert [view["name"] for view in json.loads(once("--json")[1])] == ["a.jsonl"]


def test_once_is_3_after_a_duplicate_of_what_is_not_published(desk: Desk, once: Once) -> None:
    for name, code in (("bad.jsonl", exitcodes.DEGRADED), ("again.jsonl", exitcodes.DEGRADED)):
        drop(desk.home, name, lines(rows(1)).decode())
        assert once()[0] == code
    assert once() == (exitcodes.OK, "nothing came to an end\n")
    drop(desk.home, "a.jsonl", lines(rows()).decode())
    once()
    with Store.open(desk.home) as store:
        store.rollback(reason="worse", actor="test", now=NOW)
        store.resume(actor="test", now=NOW)
    drop(desk.home, "b.jsonl", lines(rows()).decode())
    code, out = once()
    assert (code, "which is rolled_back" in " ".join(out.split())) == (exitcodes.DEGRADED, True)


def test_once_is_3_after_a_version_that_waits_for_approval_and_0_after_it_was_approved(desk: Desk, once: Once) -> None:
    with (desk.home / "service.toml").open("a") as file:
        file.write("[publish]\napproval = true\n")
    drop(desk.home, "a.jsonl", lines(rows()).decode())
    code, out = once("--json")
    [told] = json.loads(out)
    assert (code, told["state"], told["versions"]) == (exitcodes.DEGRADED, "awaiting_approval", ["v1"])
    with Store.open(desk.home) as store:
        store.approve("v1", actor="test", now=NOW)
    drop(desk.home, "again.jsonl", lines(rows()).decode())
    assert once()[0] == exitcodes.OK


def test_once_is_0_after_a_batch_was_taken_out_as_asked(desk: Desk, once: Once) -> None:
    for name in ("a", "b"):
        drop(desk.home, f"{name}.jsonl", lines(rows(seed=name)).decode())
    once()
    with Store.open(desk.home) as store:
        store.request_revert("v1", actor="test", reason="mislabelled", now=NOW)
    code, out = once("--json")
    assert (code, sorted(view["state"] for view in json.loads(out))) == (exitcodes.OK, ["published", "reverted"])


def test_once_says_of_each_batch_what_it_waits_for_itself(desk: Desk, once: Once) -> None:
    """The round of one is not to blame for a changed file; the other has not been looked at."""
    desk.worker.script("round", {"event": "failed", "reason": "v0 is changed", "retry": True, "blameless": True})
    for name in ("a.jsonl", "b.jsonl"):
        drop(desk.home, name, lines(rows(seed=name)).decode())
    code, out = once("--json")
    reasons = {view["name"]: view["reason"] for view in json.loads(out)}
    assert (code, reasons) == (exitcodes.DEGRADED, {"a.jsonl": "v0 is changed", "b.jsonl": "comes after a.jsonl"})


def test_once_prints_what_came_to_an_end_in_it_and_nothing_else(desk: Desk, once: Once) -> None:
    drop(desk.home, "good.jsonl", lines(rows()).decode())
    drop(desk.home, "bad.jsonl", "")
    (desk.home / "inbox" / "link").symlink_to("/etc/hostname")
    code, out = once("--json")
    ended = {view["name"]: view for view in json.loads(out)}
    assert (code, {name: view["state"] for name, view in ended.items()}) == (
        exitcodes.DEGRADED, {"good.jsonl": "published", "bad.jsonl": "quarantined", "link": "quarantined"}
    )  # fmt: skip
    assert ended["bad.jsonl"]["reason"].startswith("bad.jsonl: ") and ended["good.jsonl"]["versions"] == ["v1"]
    assert ended["good.jsonl"]["id"] == desk.batches()["good.jsonl"].sha256

    drop(desk.home, "next.jsonl", lines(rows(seed="next")).decode())
    code, out = once()
    assert (code, len(out.splitlines())) == (exitcodes.OK, 2)
    assert re.search(r"next\.jsonl +published +v2$", out, re.M)
    assert once("--json") == (exitcodes.OK, "[]\n")
    assert once() == (exitcodes.OK, "nothing came to an end\n")


def test_a_run_that_could_not_start_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "service.toml").write_text("")
    assert cli.main(["-c", str(tmp_path), "--json", "run", "--once", "--log-format", "json"]) == exitcodes.NO_STORE
    assert capsys.readouterr().out == ""


def test_a_hundred_thousand_rows_are_taken_in(desk: Desk) -> None:
    with (desk.home / "inbox" / "big.jsonl").open("wb") as file:
        file.write(lines(rows(MANY)))
    assert desk.service().run() == exitcodes.OK
    stats = desk.batches()["big.jsonl"].stats
    assert (stats["num_rows"], stats["num_gate"], stats["num_dev"]) == (MANY, 200, 100)


GROW = """
import sys, time
from pathlib import Path
with open(sys.argv[1], "wb") as file:
    for part in Path(sys.argv[2]).read_bytes().splitlines(keepends=True):
        file.write(part); file.flush(); time.sleep(0.02)
    while not Path(sys.argv[3]).exists():
        time.sleep(0.02)
"""


def test_a_file_that_still_grows_waits_while_the_next_one_goes_on(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(lines(rows()))
    growing = desk.home / "inbox" / "a-growing.jsonl"
    command = [sys.executable, "-S", "-c", GROW, str(growing), str(tmp_path / "source"), str(tmp_path / "end")]
    with subprocess.Popen(command) as writer, Running(desk.service(once=False)):
        wait_until(growing.exists)
        drop(desk.home, "b.jsonl", lines(rows(seed="b")).decode())
        wait_until(lambda: [row.state for row in desk.batches().values()] == ["published"])
        assert list(desk.batches()) == ["b.jsonl"] and growing.exists()
        (tmp_path / "end").touch()
        wait_until(lambda: len(desk.batches()) == 2 and desk.batches()[growing.name].state == "published")
        writer.wait()
    assert desk.batches()[growing.name].stats["num_rows"] == 60


def test_a_broken_probe_file_blames_no_batch_and_is_named(desk: Desk) -> None:
    probes = desk.home / "probes" / "utility.jsonl"
    good = probes.read_bytes()
    probes.write_bytes(good + f'{{"prompt": "{SECRET}\n'.encode())
    drop(desk.home, "a.jsonl", lines(rows()).decode())
    running = Running(desk.service(once=False))
    with running:
        wait_until(lambda: f"{probes}, line 121" in _shown(desk.home))
        assert SECRET not in _shown(desk.home)
        assert [row.state for row in desk.batches().values()] == ["queued"]
        probes.write_bytes(good)
        wait_until(lambda: [row.state for row in desk.batches().values()] == ["published"])


def _shown(home: Path) -> str:
    try:
        return str(json.loads((home / PROGRESS_FILE).read_text()).get("message", ""))
    except FileNotFoundError:
        return ""


def spoil_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-4] + b"\x00\x00\xc0\x7f")


def spoil_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


BAD_BASES = [
    (spoil_pickle, r"pytorch_model\.bin"),
    (spoil_remote_code, r"config\.json.*code"),
    (spoil_weights, r"model\.safetensors: tensor w holds NaN"),
    (spoil_index, "safetensors"),
    (shutil.rmtree, "base"),
]


@pytest.mark.parametrize(("spoil", "said"), BAD_BASES)
def test_a_base_that_cannot_be_used_is_refused_by_init_and_by_run_and_costs_no_drop(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], spoil: Callable[[Path], object], said: str
) -> None:
    base = make_base(tmp_path / "base")
    spoil(base)
    assert cli.main(["init", "--no-trial", str(tmp_path / "home"), "--model", str(base)]) == exitcodes.CONFIG
    assert re.search(said, capfd.readouterr().err)
    assert not (tmp_path / "home").exists()

    home = tmp_path / "by_hand"
    (home / "inbox").mkdir(parents=True)
    (home / "service.toml").write_text(f"[model]\nbase = {json.dumps(str(base))}\n")
    drop(home, "a.jsonl", "row\n")
    code = cli.main(["-c", str(home / "service.toml"), "run", "--once", "--log-format", "json"])
    assert code in (exitcodes.CONFIG, exitcodes.NO_STORE)
    assert re.search(said, capfd.readouterr().err)
    assert (home / "inbox" / "a.jsonl").read_text() == "row\n" and not (home / "store").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[inbox]\nsettle = 5\n", "unknown key `inbox.settle`; did you mean `settle_s`?"),
        ("[inboxes]\n", "unknown key `inboxes`; did you mean `inbox`?"),
        ("[gates.harm]\nmaximum = 1\n", "unknown key `gates.harm.maximum`"),
        ("[inbox]\nsettle_s = -1\n", "settle_s"),
        ("[inbox\n", "not valid TOML"),
    ],
)
def test_settings_that_cannot_be_used_stop_the_start_and_cost_no_drop(
    desk: Desk, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    (desk.home / "service.toml").write_text(text)
    drop(desk.home, "a.jsonl", lines(rows()).decode())
    assert cli.main(["-c", str(desk.home / "service.toml"), "run", "--once"]) == exitcodes.CONFIG
    err = capsys.readouterr().err
    assert said in err and "service.toml" in err
    assert (desk.home / "inbox" / "a.jsonl").exists() and desk.batches() == {}


def test_a_second_service_on_the_same_home_is_told_who_has_it_and_takes_nothing(
    desk: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    with Running(desk.service(once=False)):
        wait_until(lambda: (desk.home / PROGRESS_FILE).exists())
        code = cli.main(["-c", str(desk.home / "service.toml"), "run", "--once", "--log-format", "json"])
        assert code == exitcodes.LOCKED
        assert str(os.getpid()) in capfd.readouterr().err
        drop(desk.home, "a.jsonl", lines(rows()).decode())
        wait_until(lambda: [row.state for row in desk.batches().values()] == ["published"])
    assert len(desk.worker.starts("round")) == 1


def _everything_dropped_is_there(home: Path, data: bytes) -> bool:
    return data in content(home / "inbox").values() or data in content(home / "store" / "spool").values()


def test_a_full_disk_loses_nothing_says_so_and_goes_on_when_there_is_room(desk: Desk) -> None:
    data = lines(rows())
    drop(desk.home, "a.jsonl", data.decode())
    disk = FullDisk()
    before = content(desk.home / "models")
    with use(disk):
        assert desk.service().run() == exitcodes.DEGRADED
        assert _everything_dropped_is_there(desk.home, data) and desk.batches() == {}
        disk.is_full = False
        assert desk.service().run() == exitcodes.OK
    assert content(desk.home / "models" / "v0") == {
        name.removeprefix("v0/"): found for name, found in before.items() if name.startswith("v0/")
    }


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", 8) as disk:
        yield disk


def test_a_disk_that_is_really_full_loses_nothing_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    desk = Desk(small_disk)
    data = lines(rows())
    drop(desk.home, "a.jsonl", data.decode())
    with Running(desk.service(once=False)) as running:
        wait_until(lambda: [row.state for row in desk.batches().values()] == ["published"])
        more = lines(rows(seed="more"))
        drop(desk.home, ".aside", more.decode())
        filler = fill(small_disk)
        (desk.home / "inbox" / ".aside").rename(desk.home / "inbox" / "b.jsonl")
        time.sleep(1.0)
        assert _everything_dropped_is_there(desk.home, more)
        assert (desk.home / "models" / "current").readlink() == Path("v1")
        assert running.code is None
        filler.unlink()
        wait_until(lambda: [row.state for row in desk.batches().values()] == ["published"] * 2)
