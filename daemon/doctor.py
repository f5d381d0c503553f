"""Looks for what would make a service fail later, and says what to do about each."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from daemon.basemodel import check_text_side
from daemon.checks import Check
from daemon.command import Context
from daemon.config import Config, ConfigError, GateSection, GatesSection
from state import durable
from state.digests import is_of_file
from state.errors import StoreError
from state.tensors import ModelFolder
from state.text import printable

if TYPE_CHECKING:
    from daemon.probes import ProbeFiles
    from state.store import Store

MIN_WATCHES: Final = 8192
TORCH_LIMIT_S: Final = 180
_FLOAT32_BYTES: Final = 4
_TORCH_PROBE: Final = "import torch, transformers, sys; sys.exit(3 if {cuda} and not torch.cuda.is_available() else 0)"
_INOTIFY_LIMIT: Final = Path("/proc/sys/fs/inotify/max_user_watches")


def examine(context: Context) -> list[Check]:
    """All checks; without usable settings or a store those that need them are left out."""
    try:
        config = context.config()
    except ConfigError as err:
        return [Check("settings", "bad", str(err), "mend the file; `alignd config check` reads it again")]
    checks = [Check("settings", "ok", f"{context.service_file} can be used")]
    checks += [
        _gates(config),
        _inbox(context, config),
        _inotify(context, config),
        _sync(context.home),
        *probe_checks(context.home, config),
        _judge(context.home, config),
    ]
    checks += _signers(context, config)
    checks += _store_checks(context, config)
    checks += _replicas(context.home, config)
    checks += [_torch(config)]
    return checks


def _judge(home: Path, config: Config) -> Check:
    from daemon.judge_check import what_is_wrong

    fault, detail = what_is_wrong(config.judge, home)
    advice = "mend [judge]; no round is judged, and none published, until then"
    return Check("judge", "bad", fault, advice) if fault else Check("judge", "ok", detail)


def _gates(config: Config) -> Check:
    """Gates that reject nothing, of those that do by default."""
    usual, chosen = GatesSection(), config.gates
    required = [name for name in GatesSection.__struct_fields__ if getattr(usual, name).klass == "required"]
    off = [name for name in required if not _can_reject(getattr(chosen, name))]
    if not off:
        return Check("gates", "ok", "all that are required by default are")
    what = f"{', '.join(off)}: measured, and nothing is rejected for it"
    advice = 'class = "required" in [gates.NAME] and bounds within 0 to 1, as by default, turn each on'
    return Check("gates", "warn", what, advice)


def _can_reject(gate: GateSection) -> bool:
    """Whether there is a rate, from 0 to 1, that does not pass."""
    bounds = [bound for bound in (gate.max, gate.max_regression, gate.max_drift) if bound is not None and bound < 1]
    return gate.klass == "required" and (bool(bounds) or bool(gate.min))


def _signers(context: Context, config: Config) -> Iterator[Check]:
    if not config.inbox.require_signature:
        return
    from daemon import signing  # brings cryptography

    folder = context.home / config.inbox.signers
    keys = signing.trusted(folder)
    if not keys:
        yield Check(
            "signers", "bad", f"{folder} holds no Ed25519 public key", signing.no_keys(folder).partition("; ")[2]
        )
    else:
        shown = ", ".join(f"{printable(name)} ({signing.fingerprint(key)})" for name, key in keys.items())
        yield Check("signers", "ok", f"batches must be signed by one of {shown}")


def _store_checks(context: Context, config: Config) -> Iterator[Check]:
    """What the store has to say; one that is damaged ends this, and none of the other checks."""
    try:
        with context.store() as store:
            yield from _checks_of(context, config, store)
    except StoreError as err:
        yield Check("store", "bad", str(err), err.hint)


def _checks_of(context: Context, config: Config, store: Store) -> Iterator[Check]:
    yield Check("store", "ok", f"{len(store.ledger.versions())} version(s), {store.current().name} in service")
    yield _one_file_system(context, config, store)
    yield _permissions(store)
    yield disk_check(config, store)
    yield _stored(store)
    yield _base(context, config, store)
    yield _text_side(store)
    yield _clock(store)


def _inbox(context: Context, config: Config) -> Check:
    inbox = context.home / config.inbox.path
    if not inbox.is_dir():
        return Check("inbox", "bad", f"{inbox} is missing", f"mkdir {inbox}")
    if not os.access(inbox, os.R_OK | os.W_OK | os.X_OK):
        return Check("inbox", "bad", f"no permission to take files out of {inbox}", "give the service's user rwx")
    return Check("inbox", "ok", str(inbox))


def _inotify(context: Context, config: Config) -> Check:
    from daemon.watcher import is_network

    inbox = context.home / config.inbox.path
    if config.inbox.mode == "inotify" and inbox.is_dir() and is_network(inbox):
        advice = 'set [inbox] mode = "auto" or "poll"'
        return Check("watching", "bad", f"{inbox} is on a network file system, which inotify does not see", advice)
    try:
        limit = int(_INOTIFY_LIMIT.read_text())
    except (OSError, ValueError):
        return Check("watching", "warn", "the inotify limits cannot be read", "nothing is lost: the inbox is rescanned")
    if limit < MIN_WATCHES:
        advice = f"sysctl fs.inotify.max_user_watches={MIN_WATCHES}; until then the inbox is polled"
        return Check("watching", "warn", f"fs.inotify.max_user_watches is {limit}", advice)
    return Check("watching", "ok", f"{limit} inotify watches are allowed")


def _sync(home: Path) -> Check:
    trial = home / f".doctor-{uuid.uuid4().hex}"
    try:
        durable.write_file(trial, b"doctor")
        durable.remove_tree(trial)
    except OSError as err:
        return Check("fsync", "bad", f"{home}: {err.strerror}", "use a local disk that the service's user can write to")
    return Check("fsync", "ok", f"files and folders in {home} can be flushed")


def _one_file_system(context: Context, config: Config, store: Store) -> Check:
    inbox = context.home / config.inbox.path
    name, trial = "one disk", f".doctor-{uuid.uuid4().hex}"
    try:
        (inbox / trial).mkdir()
        (inbox / trial).rename(store.spool / trial)
        (store.spool / trial).rmdir()
    except OSError as err:
        if (inbox / trial).is_dir():
            (inbox / trial).rmdir()
        advice = "keep both under one mount; until then each drop is copied"
        return Check(name, "warn", f"a rename from {inbox} to {store.spool} fails: {err.strerror}", advice)
    return Check(name, "ok", "a drop is taken out of the inbox by a rename")


def _permissions(store: Store) -> Check:
    status = store.root.stat()
    if status.st_uid != os.geteuid() and os.geteuid() != 0:
        advice = "run alignd as the user that owns the store"
        return Check("permissions", "bad", f"{store.root} belongs to user {status.st_uid}", advice)
    if status.st_mode & 0o077:
        advice = f"chmod 700 {store.root}; it holds the batches"
        return Check("permissions", "bad", f"{store.root} is open to others ({status.st_mode & 0o777:o})", advice)
    return Check("permissions", "ok", f"{store.root} is closed to others")


def disk_check(config: Config, store: Store) -> Check:
    """Whether there is room for a round."""
    needed = round_bytes(ModelFolder.open(store.model_path(0)), config) + config.inbox.min_free_bytes
    free = durable.free_bytes(store.home)
    detail = f"{free:,} bytes are free; a round needs up to {needed:,}"
    if free >= needed:
        return Check("disk", "ok", detail)
    return Check("disk", "bad", detail, "make room, run `alignd gc`, or lower publish.keep_materialized")


def round_bytes(base: ModelFolder, config: Config) -> int:
    """The most disk that one round takes until it has ended; a version's lasting cost is far smaller.

    Its scratch folder holds both task vectors whole in float32, and both scores
    where the masks are sets of scores. Then come the candidate, its overlay and its patch, together at most two models.
    """
    num_pairs = 1 + (config.merge.mask == "difference")
    tensors = base.tensors.values()
    pair_bytes = 2 * _FLOAT32_BYTES * sum(tensor.num_entries for tensor in tensors)
    return num_pairs * pair_bytes + 2 * sum(tensor.num_bytes for tensor in tensors)


def _base(context: Context, config: Config, store: Store) -> Check:
    source = context.home / config.model.base
    if not source.is_dir():
        return Check("base", "ok", f"{source} is gone; v0 is the copy that counts")
    record = store.version_record(0)
    changed = [name for name, digest in record["files"].items() if not _is_of(source / name, digest)]
    if not changed:
        return Check("base", "ok", f"{source} is what v0 was made of")
    advice = "v0 stays what it was; for another base make another home with `alignd init`"
    return Check("base", "bad", f"{source} has changed since: {', '.join(sorted(changed)[:5])}", advice)


def _stored(store: Store) -> Check:
    from state import verified

    last = verified.last(store.home)
    if last is None:
        return Check(
            "stored bytes", "ok", "not checked yet; `alignd verify` does, and so does the service by schedule.verify"
        )
    if last.findings:
        advice = f"{last.findings[0].remedy}; `alignd verify` looks again"
        return Check("stored bytes", "bad", last.in_short(), advice)
    return Check("stored bytes", "ok", f"what was written, as of {last.at}")


def _is_of(path: Path, digest: str) -> bool:
    try:
        return is_of_file(path, digest)
    except OSError:
        return False


def _text_side(store: Store) -> Check:
    try:
        check_text_side(store.model_path(0))
    except StoreError as err:
        return Check("chat template", "bad", str(err), err.hint)
    return Check("chat template", "ok", "tokenizer and chat template are there")


def _clock(store: Store) -> Check:
    newest = max(row.created_at for row in store.ledger.versions())
    now = datetime.now(UTC)
    if now < datetime.fromisoformat(newest):
        return Check(
            "clock", "bad", f"the newest version was made at {newest}, which is in the future", "set the clock"
        )
    return Check("clock", "ok", now.isoformat(timespec="seconds"))


def probe_checks(home: Path, config: Config) -> Iterator[Check]:
    """Whether the probe files can be used, and are enough."""
    from daemon.probes import load, missing_required

    try:
        files = load(home, config)
    except ConfigError as err:
        yield Check("probes", "bad", str(err), "mend that file; `alignd doctor` reads it again")
        return
    missing = missing_required(files, config)
    for sentence in missing:
        what, _, advice = sentence.partition("; ")
        yield Check("probes", "bad", what, advice)
    if not missing:
        counts = f"{len(files.over_safety)} over-safety, {len(files.utility)} utility, {len(files.harm)} harm"
        yield Check("probes", "ok", f"enough of them: {counts}")
    yield from _few_harm(files, config, home)
    yield _retained(files, home / config.derive.retain.path)


def _few_harm(files: ProbeFiles, config: Config, home: Path) -> Iterator[Check]:
    from daemon.probes import gate_part

    num, least = len(gate_part(files.harm, 10**9)), config.gates.standing_harm.min_samples
    if num >= least:
        return
    what = f"{num} in their gate part, the standing_harm gate needs {least}" if files.harm else "none"
    yield Check(
        "harm probes",
        "warn",
        f"{what}: categories that no batch names are not measured",
        f"put harmful prompts of all categories there, with references: {home / config.probes.harm}",
    )


def _retained(files: ProbeFiles, path: Path) -> Check:
    if not files.retain:
        advice = f'put benign {{"prompt", "response"}} lines into {path}'
        missing = "none: only the development part of the utility probes is held"
        return Check("retain rows", "warn", missing, advice)
    judged = sum(row.key in files.gate_keys() for row in files.retain)
    if judged:
        detail = f"{judged} of {len(files.retain)} in {path} are left out: they judge in the gate part of a probe file"
        return Check("retain rows", "warn", detail, "retain answers to other prompts than the probes")
    return Check("retain rows", "ok", f"{len(files.retain)} in {path}")


def _replicas(home: Path, config: Config) -> Iterator[Check]:
    """Whether each replica answers, with what it needs: its files, its token."""
    if not config.serving:
        return
    import threading

    from daemon.engines import EngineError, Surroundings
    from daemon.handover import engine_of
    from daemon.http_calls import CallError
    from daemon.replica_check import read_golden

    around = Surroundings(home, threading.Event())
    for section in config.serving:
        name = f"replica {section.name}"
        try:
            if section.verify.golden:
                read_golden(home / section.verify.golden)
            if section.secret_file:
                around.secret(section.secret_file)
            label = engine_of(section, around).label()
        except (EngineError, CallError) as err:
            advice = "start it, or mend [[serving]]; docs/serving.md has what each kind needs"
            yield Check(name, "warn", str(err), advice)
        else:
            says = f"says that it serves {label}" if label else "has no label to ask for"
            yield Check(name, "ok", f"{section.kind}; {says}")


def _torch(config: Config) -> Check:
    wants_cuda = config.model.device.startswith("cuda")
    probe = _TORCH_PROBE.format(cuda=wants_cuda)
    try:
        done = subprocess.run(
            [sys.executable, "-c", probe], capture_output=True, text=True, timeout=TORCH_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Check("torch", "bad", f"not imported within {TORCH_LIMIT_S} s", "look at the disk and the memory")
    if done.returncode == 3:
        return Check("torch", "bad", "torch sees no GPU, and model.device wants one", 'mend that or set device = "cpu"')
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it died"])[-1]
        return Check("torch", "bad", f"torch and transformers cannot be imported: {said}", "run `make setup` again")
    return Check("torch", "ok", "torch and transformers can be imported")
