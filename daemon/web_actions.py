"""What a person may do on the page: the commands of `alignd`, each with what to read before it is confirmed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from daemon import commands_control, commands_rounds, commands_store
from daemon.command import Answer, Context
from daemon.web_facts import switches
from state.errors import NotFoundError, RefusedError

if TYPE_CHECKING:
    from state.store import Store

ACTOR: Final = "page"


@dataclass(frozen=True)
class PageContext(Context):
    """The home of the page, whose changes the audit file knows as the page's."""

    @property
    def actor(self) -> str:
        """Who the audit file says it was: whoever held the token."""
        return ACTOR


@dataclass(frozen=True)
class Preview:
    """What stands on the page that asks for confirmation."""

    ref: str
    """What the action is about, by a name that will mean the same when it is confirmed."""
    title: str
    sentences: tuple[str, ...]
    stamp: str = ""
    """What must still be so when it is confirmed: another tab may have been quicker."""
    back: str = "/"
    """The page to go on with."""


@dataclass(frozen=True)
class Action:
    """One command, as a button."""

    command: str
    """As it is typed. Its options have the command's own defaults: no rollback is checked first, which may take minutes."""
    button: str
    operand: str
    """The command's name for what it is about; empty where it is about the whole home."""
    preview: Callable[[Store, str], Preview]
    reason: str | None = None
    """What stands for a reason where none is given; None where the command takes none."""

    @property
    def name(self) -> str:
        """Its name in addresses."""
        return self.command.rpartition(" ")[2]


def perform(action: Action, context: Context, *, ref: str, reason: str, stamp: str) -> Answer:
    """Does it, as the command does.

    Raises:
        RefusedError: what was confirmed is not what would be done by now; and what the command raises.
    """
    with context.store() as store:
        found = action.preview(store, ref)
    if found.stamp != stamp:
        raise RefusedError("something changed since this was asked", "look at it again, and confirm what is there now")
    command = _COMMANDS[action.command]
    words = command.defaults()
    words |= {action.operand: found.ref} if action.operand else {}
    words |= {} if action.reason is None else {"reason": reason.strip() or action.reason}
    return command.run(context, argparse.Namespace(**words))


def _rollback(store: Store, ref: str) -> Preview:
    current = store.current()
    target = store.resolve(ref or "previous")
    kept = {row.id for row in store.ledger.line(target.id)}
    behind = [row.name for row in store.ledger.line(current.id) if row.id not in kept]
    return Preview(
        target.name,
        f"Roll back to {target.name}?",
        (
            f"{current.name} leaves service and {target.name} comes into service.",
            f"Blocked from then on: {', '.join(behind[-8:][::-1]) or 'nothing'}"
            + (f" and {len(behind) - 8} more." if len(behind) > 8 else "."),
            "A hold is set: nothing is published until somebody resumes.",
        ),
        current.name,
    )


def _approve(store: Store, ref: str) -> Preview:
    row, current = store.resolve(ref or "candidate"), store.current()
    told = f"{row.name} comes into service instead of {current.name}."
    return Preview(row.name, f"Approve {row.name}?", (told,), current.name, f"/versions/{row.name}")


def _reject(store: Store, ref: str) -> Preview:
    row = store.resolve(ref or "candidate")
    told = f"{row.name} is blocked and its batch rejected; {store.current().name} stays in service."
    return Preview(row.name, f"Reject {row.name}?", (told,), row.state, f"/versions/{row.name}")


def _pin(store: Store, ref: str) -> Preview:
    row = store.resolve(ref)
    told = f"The model folder of {row.name} is kept for good: garbage collection leaves it alone."
    return Preview(row.name, f"Pin {row.name}?", (told,), "", f"/versions/{row.name}")


def _unpin(store: Store, ref: str) -> Preview:
    row = store.resolve(ref)
    told = f"Garbage collection may take the model folder of {row.name}; it is rebuilt when somebody wants it."
    return Preview(row.name, f"Unpin {row.name}?", (told,), "", f"/versions/{row.name}")


def _pause(store: Store, ref: str) -> Preview:
    told = ("No round starts until somebody resumes.", "A round that runs goes on to its end.")
    return Preview("", "Pause?", told, switches(store))


def _resume(store: Store, ref: str) -> Preview:
    lifted = [
        f"The {name} is lifted: {row.reason}." for name, row in (("hold", store.held), ("pause", store.paused)) if row
    ]
    if not lifted:
        raise RefusedError("nothing is held or paused", "there is nothing to resume")
    return Preview("", "Resume?", (*lifted, "Rounds start, and versions that pass are published."), switches(store))


def _retry(store: Store, ref: str) -> Preview:
    row = store.ledger.batch(ref)
    if row is None:
        raise NotFoundError(f"there is no batch {ref}", "the page of the batches lists them")
    told = (f"It is {row.state.replace('_', ' ')} and goes back into the queue.", "A round is made of it anew.")
    return Preview(row.sha256, f"Try {row.name} again?", told, row.state, f"/batches/{row.sha256}")


def _release(store: Store, ref: str) -> Preview:
    entry = next((entry for entry in store.quarantined() if entry.id == ref), None)
    if entry is None:
        raise NotFoundError("that is not in quarantine", "somebody may have released or dropped it")
    told = ("It goes back into the queue and is read again.", f"It was put aside because: {entry.reason}")
    return Preview(entry.id, f"Release {entry.name}?", told, entry.at, "/quarantine")


_COMMANDS: Final = {
    command.name: command
    for command in (*commands_control.COMMANDS, *commands_rounds.COMMANDS, *commands_store.COMMANDS)
}
ACTIONS: Final = {
    action.name: action
    for action in (
        Action("rollback", "Roll back", "ref", _rollback, "rolled back on the page"),
        Action("pause", "Pause", "", _pause, "paused on the page"),
        Action("resume", "Resume", "", _resume, ""),
        Action("approve", "Approve", "ref", _approve, ""),
        Action("reject", "Reject", "ref", _reject, "rejected on the page"),
        Action("pin", "Pin", "ref", _pin),
        Action("unpin", "Unpin", "ref", _unpin),
        Action("retry", "Try again", "batch", _retry),
        Action("quarantine release", "Release", "entry", _release),
    )
}
"""Every action by its name in addresses."""
