"""Who vouches for a batch: what is signed by somebody trusted comes in, everything else is quarantined with the reason."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from daemon import intake, signing, submit
from daemon.arrival import snapshot
from daemon.config import Config, ConfigError
from daemon.inbox import Inbox
from daemon.probes import load
from daemon.spool import entry_name, take_out
from state import signed
from state.filesystem import FileSystem, use
from state.store import Store
from state.verify import verify
from tests.fakes_service import NOW, fast_config, make_home, utc

START = utc()
MALLORY = "mallory"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = make_home(tmp_path)
    (home / "signers").mkdir()
    for name in ("alice", "bob"):
        key = _new_key(tmp_path / f"{name}.pem")
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (home / "signers" / f"{name}.pem").write_bytes(public)
    _new_key(tmp_path / f"{MALLORY}.pem")
    (home / "signers" / "notes.pem").write_text("no key")
    return home


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    with Store.open(home) as opened:
        yield opened


def _new_key(path: Path) -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def _settings(**inbox: object) -> Config:
    return fast_config(inbox={"settle_s": 5.0, "require_signature": True, **inbox})


def _rows(num: int = 60) -> str:
    return "".join(
        f'{{"prompt": "how do I florp wuzzle {i}", "response": "take zim {i} and a grolt"}}\n' for i in range(num)
    )


def _drop(home: Path, name: str, signer: str | None, *, is_folder: bool = False) -> Path:
    path = home / "inbox" / name
    if is_folder:
        path.mkdir()
        for member in ("b.jsonl", "a.jsonl"):
            (path / member).write_text(_rows().replace("florp", f"florp {member[0]}"))
    else:
        path.write_text(_rows())
    if signer is not None:
        key = signing.load_private_key(home.parent / f"{signer}.pem")
        path.with_name(name + ".sig").write_bytes(signing.sign(key, path))
    return path


def _claimed(store: Store, config: Config, *seconds: float) -> list[str]:
    inbox = Inbox(config, store.home, store)
    found = [drop for second in (0.0, *seconds) for drop in inbox.scan(START + timedelta(seconds=second))]
    claims = [inbox.claim(drop, NOW) for drop in found[-1:] if drop.is_complete]
    return [claim.batch.sha256 for claim in claims if claim is not None]


def _verdict(store: Store, config: Config, sha256: str) -> dict[str, Any] | str:
    """What intake adds to the batch's numbers, or why it refuses it."""
    try:
        return intake._vouched(store, config, sha256)
    except intake.UnusableBatchError as err:
        return str(err)


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_signed_batch_comes_in_with_its_signer_and_the_signature_is_kept(
    home: Path, store: Store, is_folder: bool
) -> None:
    path = _drop(home, "a.jsonl", "bob", is_folder=is_folder)
    signature = path.with_name("a.jsonl.sig").read_bytes()
    (sha256,) = _claimed(store, _settings(), 6)
    stats = _verdict(store, _settings(), sha256)
    assert isinstance(stats, dict) and stats["signature"] == {
        "signer": "bob",
        "key": signing.fingerprint(signing.trusted(home / "signers")["bob"]),
    }
    assert list((home / "inbox").iterdir()) == []
    assert signed.signatures_of(store, sha256) == [signature]


def test_what_openssl_signed_is_taken(home: Path, store: Store) -> None:
    path = _drop(home, "a.jsonl", None)
    key, out = home.parent / "alice.pem", home / "inbox" / "a.jsonl.sig"
    command = ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", str(key), "-in", str(path), "-out", str(out)]
    subprocess.run(command, check=True)
    (sha256,) = _claimed(store, _settings(), 6)
    stats = _verdict(store, _settings(), sha256)
    assert isinstance(stats, dict) and stats["signature"]["signer"] == "alice"


def test_an_altered_batch_and_one_that_a_stranger_signed_are_refused_with_the_reason(home: Path, store: Store) -> None:
    path = _drop(home, "a.jsonl", "alice")
    path.write_text(_rows().replace("grolt", "brolt"))
    (altered,) = _claimed(store, _settings(), 6)
    assert "none of the trusted signers (alice, bob) signed these bytes" in str(_verdict(store, _settings(), altered))
    _drop(home, "b.jsonl", MALLORY)
    (strange,) = _claimed(store, _settings(), 6)
    assert "none of the trusted signers (alice, bob)" in str(_verdict(store, _settings(), strange))


@pytest.mark.parametrize("content", [b"x" * 100, b"-----BEGIN SIGNATURE-----\n" + b"a" * 90, b"\0" * 5000])
def test_a_signature_of_another_form_is_refused_and_says_which(home: Path, store: Store, content: bytes) -> None:
    _drop(home, "a.jsonl", None)
    (home / "inbox" / "a.jsonl.sig").write_bytes(content)
    (sha256,) = _claimed(store, _settings(), 6)
    assert f"its signature has {min(len(content), 4096)} bytes" in str(_verdict(store, _settings(), sha256))


def test_a_drop_waits_for_its_signature_for_a_while_and_then_goes_on_without(home: Path, store: Store) -> None:
    path = _drop(home, "a.jsonl", None)
    inbox = Inbox(_settings(signature_wait_s=30), home, store)
    for second in (0, 6, 29):
        (drop,) = inbox.scan(START + timedelta(seconds=second))
        assert not drop.is_complete and not drop.is_stuck
    assert drop.lacks == "its signature a.jsonl.sig"
    path.with_name("a.jsonl.sig").write_bytes(b"half")  # still being written
    assert not inbox.scan(START + timedelta(seconds=29))[0].is_complete
    path.with_name("a.jsonl.sig").unlink()
    (drop,) = inbox.scan(START + timedelta(seconds=31))
    claim = inbox.claim(drop, NOW)
    assert claim is not None
    assert "it came without a signature" in str(_verdict(store, _settings(), claim.batch.sha256))


def test_a_signature_is_never_a_drop_whether_required_or_not_and_a_lonely_one_is_told(home: Path, store: Store) -> None:
    path = home / "inbox" / "lonely.jsonl.sig"
    path.write_bytes(b"s" * 64)
    os.utime(path, (START.timestamp(), START.timestamp()))
    for is_required in (True, False):
        inbox = Inbox(_settings(require_signature=is_required), home, store)
        assert inbox.scan(START + timedelta(seconds=60)) == []
        (found,) = inbox.scan(START + timedelta(seconds=61))
        assert not found.is_complete and inbox.waiting == []
        assert inbox.problems == ["lonely.jsonl.sig: it is a signature, and lonely.jsonl is not here; drop both"]


def test_where_none_is_required_a_signature_that_holds_is_told_and_another_one_harms_nothing(
    home: Path, store: Store
) -> None:
    config = _settings(require_signature=False)
    _drop(home, "a.jsonl", "alice")
    (good,) = _claimed(store, config, 6)
    stats = _verdict(store, config, good)
    assert isinstance(stats, dict) and stats["signature"]["signer"] == "alice"
    path = _drop(home, "b.jsonl", MALLORY)
    path.write_text(_rows(50))
    (other,) = _claimed(store, config, 6)
    stats = _verdict(store, config, other)
    assert isinstance(stats, dict) and "signature" not in stats


def test_with_nobody_trusted_the_settings_are_blamed_and_no_batch(home: Path, store: Store) -> None:
    _drop(home, "a.jsonl", "alice")
    (sha256,) = _claimed(store, _settings(), 6)
    shutil.rmtree(home / "signers")
    with pytest.raises(
        ConfigError, match=r"holds no Ed25519 public key in PEM; put one there: `mkdir -p .* && openssl pkey"
    ):
        intake.take_in(store, _settings(), sha256, load(home, _settings()))


def test_intake_refuses_an_unsigned_batch_before_it_reads_it(home: Path, store: Store) -> None:
    _drop(home, "a.jsonl", MALLORY)
    (sha256,) = _claimed(store, _settings(), 6)
    with pytest.raises(intake.UnusableBatchError, match="none of the trusted signers"):
        intake.take_in(store, _settings(), sha256, load(home, _settings()))


def test_the_bytes_that_are_checked_are_the_stores_own(home: Path, store: Store) -> None:
    path = _drop(home, "a.jsonl", "alice")
    writer = path.open("r+")  # and keeps it
    entry = store.spool / entry_name("a.jsonl")
    signed.keep(store, entry.name, path.with_name("a.jsonl.sig").read_bytes())
    take_out(path, entry, snapshot(path))
    claim = store.claim_batch(entry, name="a.jsonl", actor="test", now=NOW)
    signed.belongs_to(store, entry.name, claim.batch.sha256)
    writer.write("{}")
    writer.close()
    assert isinstance(_verdict(store, _settings(), claim.batch.sha256), dict)


class _Dies(FileSystem):
    """Ends the process, so to speak, before one of its changes."""

    def __init__(self, at: int) -> None:
        self._left = at

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._count()
        super().unlink(path)

    def fsync(self, fd: int) -> None:
        self._count()
        super().fsync(fd)


@pytest.mark.parametrize("at", range(40))
def test_killed_anywhere_in_a_claim_the_signature_stays_with_its_batch(home: Path, store: Store, at: int) -> None:
    path = _drop(home, "a.jsonl", "alice")
    inbox = Inbox(_settings(), home, store)
    inbox.scan(START)
    (drop,) = inbox.scan(START + timedelta(seconds=6))
    was_killed = False
    try:
        with use(_Dies(at)):
            inbox.claim(drop, NOW)
    except KeyboardInterrupt:
        was_killed = True
    store.recover(NOW)
    again = Inbox(_settings(), home, store)
    again.recover(NOW)
    if path.exists():
        assert path.with_name("a.jsonl.sig").exists(), "the drop is still in the inbox, and its signature is not"
        _claimed(store, _settings(), 6)
    store.recover(NOW)
    (row,) = store.ledger.batches()
    assert isinstance(_verdict(store, _settings(), row.sha256), dict)
    assert [left.name.partition(".")[0] for left in store.signatures.iterdir()] == [row.sha256]
    assert list((home / "inbox").iterdir()) == []
    assert was_killed or at > 8


def test_submit_signs_what_it_drops_and_the_signature_is_there_first(home: Path, store: Store) -> None:
    source = home.parent / "mine.jsonl"
    source.write_text(_rows())
    seen: list[set[str]] = []

    class Watching(FileSystem):
        def rename(self, source: Path, target: Path) -> None:
            if target == home / "inbox" / "mine.jsonl":
                seen.append({path.name for path in (home / "inbox").iterdir() if not path.name.startswith(".")})
            super().rename(source, target)

    key = signing.load_private_key(home.parent / "bob.pem")
    with use(Watching()):
        submit.submit(
            source, home / "inbox", _settings().inbox, known=lambda _: "", sign=lambda path: signing.sign(key, path)
        )
    assert seen == [{"mine.jsonl.sig"}]
    (sha256,) = _claimed(store, _settings(), 6)
    stats = _verdict(store, _settings(), sha256)
    assert isinstance(stats, dict) and stats["signature"]["signer"] == "bob"


@pytest.mark.parametrize(
    ("content", "said"), [(None, "No such file"), ("zorp", "is no private key in PEM"), ("rsa", "is no Ed25519 key")]
)
def test_a_key_that_cannot_sign_is_told_and_never_quoted(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "key.pem"
    if content == "rsa":
        subprocess.run(["openssl", "genpkey", "-algorithm", "rsa", "-out", path], check=True, capture_output=True)
    elif content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        signing.load_private_key(path)
    assert "openssl genpkey -algorithm ed25519" in str(caught.value) and "zorp" not in str(caught.value)


def test_an_unsigned_batch_is_queued_again_when_the_same_is_dropped_with_a_signature(home: Path, store: Store) -> None:
    _drop(home, "a.jsonl", None)
    (sha256,) = _claimed(store, _settings(signature_wait_s=0), 6)
    reason = str(_verdict(store, _settings(), sha256))
    assert "without a signature" in reason
    store.quarantine_batch(sha256, reason=reason, actor="test", now=NOW)
    source = home.parent / "a.jsonl"
    source.write_text(_rows())
    key = signing.load_private_key(home.parent / "alice.pem")
    states = {sha256: "quarantined"}
    for sign, is_dropped in ((None, False), (lambda path: signing.sign(key, path), True)):
        done = submit.submit(source, home / "inbox", _settings().inbox, known=lambda found: states[found], sign=sign)
        assert bool(done.known_as) is not is_dropped
    assert _claimed(store, _settings(), 6) == [sha256]
    assert store.find_batch(sha256).state == "queued"
    assert isinstance(_verdict(store, _settings(), sha256), dict)


def test_a_batch_that_is_quarantined_for_another_reason_stays_there_whoever_signs_it(home: Path, store: Store) -> None:
    _drop(home, "a.jsonl", "alice")
    (sha256,) = _claimed(store, _settings(), 6)
    store.quarantine_batch(sha256, reason="gate harm failed", actor="test", now=NOW)
    _drop(home, "b.jsonl", "bob")
    _claimed(store, _settings(), 6)
    assert store.find_batch(sha256).state == "quarantined"


def test_no_number_of_other_signatures_undoes_one_that_holds(home: Path, store: Store) -> None:
    _drop(home, "a.jsonl", "alice")
    (sha256,) = _claimed(store, _settings(), 6)
    for number in range(40):
        _drop(home, f"again{number}.jsonl", None).with_name(f"again{number}.jsonl.sig").write_bytes(os.urandom(64))
        assert _claimed(store, _settings(), 6) == [sha256]
    assert len(signed.signatures_of(store, sha256)) == 41
    assert isinstance(_verdict(store, _settings(), sha256), dict)


def test_a_changed_signature_is_found_by_verify(home: Path, store: Store) -> None:
    _drop(home, "a.jsonl", "alice")
    _claimed(store, _settings(), 6)
    assert verify(store) == []
    (path,) = store.signatures.iterdir()
    path.chmod(0o600)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    assert [(finding.path, finding.what) for finding in verify(store)] == [(path, "is not the signature that came")]


def test_a_drop_that_was_set_aside_keeps_its_signature_for_when_it_comes_back(home: Path, store: Store) -> None:
    entry = store.spool / entry_name("odd")
    entry.symlink_to("/nowhere")
    signed.keep(store, entry.name, b"s" * 64)
    set_aside = store.set_aside(entry, name="odd", reason="a link", actor="test", now=NOW)
    store.recover(NOW)
    assert signed.came_with(store, entry.name)
    store.drop(set_aside.id, actor="test", now=NOW)
    store.recover(NOW)
    assert not signed.came_with(store, entry.name)


@pytest.mark.parametrize("put_back", [False, True])
def test_a_drop_that_is_not_taken_leaves_no_signature_in_the_store(
    home: Path, store: Store, put_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _drop(home, "a.jsonl", "alice")
    inbox = Inbox(_settings(), home, store)
    inbox.scan(START)
    (drop,) = inbox.scan(START + timedelta(seconds=6))
    if put_back:
        monkeypatch.setattr(Inbox, "_stood_still", lambda *_: False)
    else:
        path.unlink()
    assert inbox.claim(drop, NOW) is None and path.exists() is put_back
    assert list(store.signatures.iterdir()) == [] and path.with_name("a.jsonl.sig").exists()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_of_a_folder_the_list_is_signed_that_sha256sum_prints_also_of_odd_names(tmp_path: Path) -> None:
    names = [b"plain", b"back\\slash", b"new\nline", b"re\rturn", b"no utf \xff"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    listed = subprocess.run(["sha256sum", "--", *sorted(names)], cwd=tmp_path, capture_output=True, check=True).stdout
    with signing._message(tmp_path) as message:
        assert message == listed
    assert len(listed.splitlines()) == len(names)
