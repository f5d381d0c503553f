"""Keeps the replicas of the serving engines at the version in service; the loop never waits for one.

What is known of each replica lies in the store, so that a killed service goes on where it was: a replica that was being
told something then is told again.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Final

import structlog

from daemon import handover
from daemon.config_serving import ServingSection
from daemon.engines import Offer, Surroundings
from daemon.errand import Errand
from daemon.handover import Attempt
from daemon.job import Workshop
from daemon.log import REPLICA_DRIFTED, REPLICA_FAILED, REPLICA_RESTORED, REPLICA_SYNCED
from daemon.replica_views import read_replica
from policies.handover import (
    Limits,
    Outcome,
    Replica,
    Step,
    after,
    broken_off,
    is_settled,
    may_start,
    next_step,
    to_tell_anew,
    wait_s,
    wanting,
)
from state import lock
from state.errors import LockedError, NotFoundError
from state.rows import PointerRow

_NOTE: Final = "serving"
_STOP_S: Final = 5.0
_LOCKED_S: Final = 1.0
_MAX_CHECKSUMS: Final = 20

_log = structlog.get_logger()


class Serving:
    """The replicas of `[[serving]]`, reconciled: desired is the version in service, observed what each one serves."""

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self._store = shop.store
        self._replicas: dict[str, Replica] = {}
        self._errands: dict[str, Errand] = {}
        self._due: dict[str, datetime] = {}
        """When a replica is looked at again, by `Workshop.steady`."""
        self._is_asked = False
        """Somebody asked for all replicas to be told anew, and was not yet told that it was heard."""
        self._lock = ExitStack()
        self._is_locked = False
        self._load()

    @property
    def replicas(self) -> list[Replica]:
        """What is known, in the order of the settings."""
        names = [section.name for section in self._shop.config.serving]
        return [self._replicas[name] for name in names if name in self._replicas]

    def tick(self) -> None:
        """Takes in what ended, and starts what is due; waits for nothing."""
        if not (self._shop.config.serving or self._replicas):
            return
        for name, errand in list(self._errands.items()):
            if errand.is_over:
                self._take_in(name, errand)
        self._want()
        self._start_due()
        self._note()

    def next_due(self) -> datetime | None:
        """When there is something to do, by `Workshop.steady`; None while there are no replicas."""
        now = self._shop.steady()
        idle = (due for name, due in self._due.items() if name not in self._errands)
        # who is due and was not begun waits for another's end, and that wakes the loop
        return min((due for due in idle if due > now or not self._errands), default=None)

    def is_busy(self) -> bool:
        """Something goes on that does not wait for a retry."""
        return bool(self._errands) or any(not is_settled(replica) for replica in self.replicas)

    def is_degraded(self) -> bool:
        """A replica does not serve what it should."""
        return any(replica.state == "degraded" for replica in self.replicas)

    def stop(self) -> None:
        """Ends within seconds; what was being told is told again at the next start."""
        end = time.monotonic() + _STOP_S
        for errand in self._errands.values():
            errand.cancelled.set()
        for name, errand in list(self._errands.items()):
            errand.wait(end - time.monotonic())
            if errand.is_over:
                self._take_in(name, errand)
        self._note()
        self._unlock()

    def _load(self) -> None:
        known = {name: read_replica(values) for name, values in self._store.replicas.items()}
        self._replicas = {
            name: replica if replica.sending is None else broken_off(replica)
            for name, replica in known.items()
            if replica is not None
        }

    def _want(self) -> None:
        """Brings the list in line with the settings, and every replica under the version in service."""
        desired = self._store.current().id
        sections = self._shop.config.serving
        for name in set(self._replicas) - {section.name for section in sections}:
            if name not in self._errands:
                del self._replicas[name]
                self._due.pop(name, None)
        is_asked = bool(self._store.sync_asked)
        for section in sections:
            known = self._replicas.get(section.name)
            if known is None or known.kind != section.kind:
                known = Replica(section.name, section.kind, desired)
            wanted = wanting(known, desired)
            if wanted.desired != known.desired and section.name in self._errands:
                self._errands[section.name].cancelled.set()
            if is_asked and section.name not in self._errands:
                wanted = to_tell_anew(wanted)
            if wanted != known or section.name not in self._due:
                self._due[section.name] = self._shop.steady()
            self._put(wanted)
        self._is_asked = self._is_asked or is_asked

    def _start_due(self) -> None:
        now, limits = self._shop.steady(), self._limits()
        steps: dict[int, Step] = {}
        for index, section in enumerate(self._shop.config.serving):
            known = self._replicas[section.name]
            if section.name not in self._errands:
                is_due = self._due[section.name] <= now
                fallback = self._fallback(known, section)
                steps[index] = next_step(known, is_due=is_due, fallback=fallback, limits=limits)
        for index, step in steps.items():
            if step.kind == "check":
                self._start(self._shop.config.serving[index], step)
        telling = [(i, step) for i, step in steps.items() if step.kind in ("send", "restore")]
        if not telling or not self._is_ours():
            return
        waiting = [(self._failures(index), index) for index, _ in telling]
        running = sum(errand.is_telling for errand in self._errands.values())
        for index in may_start(waiting, num_running=running, parallel=self._parallel()):
            self._start(self._shop.config.serving[index], steps[index])

    def _failures(self, index: int) -> int:
        return self._replicas[self._shop.config.serving[index].name].num_failures

    def _parallel(self) -> int:
        """One after the other, so that the rest serves on; but away from a version that was rolled back at once."""
        is_rollback = self._store.ledger.current_pointer().action == "rollback"
        return len(self._shop.config.serving) if is_rollback else self._shop.config.handover.parallel

    def _start(self, section: ServingSection, step: Step) -> None:
        known = self._replicas[section.name]
        version = known.desired if step.version is None else step.version
        offer = self._offer(known, step, version, self._fallback(known, section))
        may_skip = step.kind == "send" and not known.is_spoilt
        if step.kind != "check":
            self._put(replace(known, sending=version))
            self._note()  # before the replica hears of it
        home = self._shop.home

        def work(cancelled: threading.Event) -> Attempt:
            return handover.run(step, known, section, offer, Surroundings(home, cancelled), may_skip=may_skip)

        self._errands[section.name] = Errand(step, work, self._shop.wake)

    def _offer(self, known: Replica, step: Step, version: int, fallback: int | None) -> Offer:
        pointer: PointerRow = self._store.ledger.current_pointer()
        before = known.observed if known.observed is not None else known.good
        return Offer(
            version=f"v{version}",
            folder=self._store.model_path(version),
            action="restore" if step.kind == "restore" else pointer.action,
            previous="" if before is None else f"v{before}",
            number=pointer.seq,
            fallback=None if fallback is None else (f"v{fallback}", self._store.model_path(fallback)),
        )

    def _fallback(self, known: Replica, section: ServingSection) -> int | None:
        """The version that may be sent again: one that the replica served well, that nobody has blocked since."""
        version = known.good
        if version is None or version == known.desired or not self._store.is_materialized(version):
            return None
        if section.kind == "systemd" and not section.link:
            return None  # it reads models/current, and nothing else
        try:
            return None if self._store.version(version).blocked else version
        except NotFoundError:
            return None

    def _take_in(self, name: str, errand: Errand) -> None:
        del self._errands[name]
        known = self._replicas[name]
        attempt = errand.result or Attempt(Outcome("spoilt", error="alignd itself failed; its log says how"))
        if attempt.outcome is None:
            self._put(broken_off(known))
            self._due[name] = self._shop.steady()
            return
        outcome = attempt.outcome
        found = after(known, errand.step, outcome)
        if attempt.checksums:
            kept = list(
                {**known.checksums, **attempt.checksums}.items()
            )  # verified: where both have one, it is the same
            found = replace(found, checksums=dict(kept[-_MAX_CHECKSUMS:]))
        self._tell_log(known, errand, outcome)
        self._put(found)
        self._due[name] = self._shop.steady() + timedelta(seconds=wait_s(found, self._limits()))

    def _tell_log(self, known: Replica, errand: Errand, outcome: Outcome) -> None:
        step, version = errand.step.kind, known.desired if errand.step.version is None else errand.step.version
        if outcome.kind != "serves":
            if errand.is_telling or outcome.error != known.error:
                _log.error(
                    REPLICA_FAILED,
                    replica=known.name,
                    kind=known.kind,
                    version=f"v{version}",
                    step=step,
                    outcome=outcome.kind,
                    reason=outcome.error,
                )
        elif errand.is_telling:
            event = REPLICA_RESTORED if step == "restore" else REPLICA_SYNCED
            duration_s = round(errand.elapsed_s(), 3)
            _log.info(event, replica=known.name, kind=known.kind, version=f"v{outcome.version}", duration_s=duration_s)
        elif outcome.version != known.observed:
            found = None if outcome.version is None else f"v{outcome.version}"
            expected = f"v{known.observed}"
            _log.warning(REPLICA_DRIFTED, replica=known.name, kind=known.kind, expected=expected, found=found)

    def _put(self, replica: Replica) -> None:
        before = self._replicas.get(replica.name)
        is_news = before is None or (before.state, before.observed) != (replica.state, replica.observed)
        self._replicas[replica.name] = replace(replica, since=self._shop.stamp()) if is_news else replica

    def _note(self) -> None:
        replicas = self.replicas
        versions = {version for replica in replicas for version in replica.versions}
        self._store.note_replicas({replica.name: asdict(replica) for replica in replicas}, versions)
        if self._is_asked:  # only now may whoever asked look at them
            self._store.ask_for_sync("")
            self._is_asked = False
        said = "; ".join(degraded_text(replica) for replica in replicas if replica.state == "degraded")
        self._shop.note(_NOTE, said)
        if not any(errand.is_telling for errand in self._errands.values()):
            self._unlock()

    def _limits(self) -> Limits:
        chosen = self._shop.config.handover
        return Limits(chosen.attempts, chosen.retry_s, chosen.max_retry_s, chosen.check_s)

    def _is_ours(self) -> bool:
        """Whether nobody else, a command for instance, tells the replicas something now."""
        if not self._is_locked:
            try:
                self._lock.enter_context(lock.hold(self._store.serving_lock, "serving"))
            except LockedError:
                later = self._shop.steady() + timedelta(seconds=_LOCKED_S)
                self._due = {name: max(due, later) for name, due in self._due.items()}
                return False
            self._is_locked = True
        return True

    def _unlock(self) -> None:
        self._lock.close()
        self._is_locked = False


def degraded_text(replica: Replica) -> str:
    """What a person should know of a degraded replica."""
    serves = "something unknown" if replica.observed is None else f"v{replica.observed}"
    return f"replica {replica.name} should serve v{replica.desired} and serves {serves}: {replica.error}"
