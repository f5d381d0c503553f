"""What an earlier start of a round left behind, and whether a new start can go on from there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import structlog

from daemon.config import Config
from daemon.log import ROUND_RESTARTED
from daemon.patching import ENTRIES_FILE, OVER_SAFETY_FILE, SAFETY_FILE, SCORES_FILE
from daemon.probes import ProbeFiles
from daemon.steps import STEPS
from state import durable
from state.rows import RoundRow
from state.store import Store

INPUTS: Final = "inputs"
"""Under this key a round's first step records the digests of the probe files that all its steps read."""

_log = structlog.get_logger()


def settle(store: Store, config: Config, row: RoundRow, files: ProbeFiles) -> RoundRow:
    """The round with its scratch folder; without its steps where they cannot be gone on from, so that all begin anew.

    The batch is learnt all the same, and everything that the version records then belongs together.
    """
    reason = _why_anew(store, config, row, files) if row.artefacts else ""
    if reason:
        _log.warning(ROUND_RESTARTED, round=row.id, cause=reason)
        row = store.forget_steps(row.id)
        durable.remove_tree(store.scratch(row.id))
    durable.make_folder(store.scratch(row.id))
    return row


def _why_anew(store: Store, config: Config, row: RoundRow, files: ProbeFiles) -> str:
    first = row.artefacts.get(STEPS[row.kind][0], {})
    if first.get(INPUTS) != files.digests:
        return "the probe files are not those that it began with"
    if store.is_placed(row.id):
        return ""  # a commit that died half way has moved the candidate out
    scratch = store.scratch(row.id)
    missing = [name for name in _files_of(store, config, row) if not (scratch / name).exists()]
    return f"{missing[0]} is gone from its scratch folder" if missing else ""


def _files_of(store: Store, config: Config, row: RoundRow) -> Iterator[str]:
    """What the finished steps keep in the scratch folder and later ones read."""
    kept = {"over_safety": OVER_SAFETY_FILE, "safety": SAFETY_FILE}
    if config.derive.backend == "sparse":
        kept["choose"] = ENTRIES_FILE
    if config.merge.mask != "joint":
        kept["score"] = SCORES_FILE
    yield from (name for step, name in kept.items() if step in row.artefacts)
    merge: dict[str, Any] = row.artefacts.get("merge") or row.artefacts.get("remerge") or {}
    yield from (merge[key] for key in ("staging_model", "overlay") if key in merge)
    digest = merge.get("patch")
    if digest and not store.patch_path(digest).exists():  # a commit that died early has moved this alone
        yield store.patch_path(digest).name
