"""Makes a home as a checkout before schema 2 makes it, killed in the middle of its day; how the archives beside this came to be.

    git archive COMMIT | tar -x -C OLD
    cd OLD && PYTHONPATH=OLD python .../tests/stores/make_schema_1.py .../schema-1-COMMIT.tar.gz

Whatever the checkout has is used, and nothing of today's: it runs on 97aa922, the first commit, and on 51d4653, the last one
with schema 1.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from state.store import Store
from tests import state_world
from tests.state_world import NOW, begin, drop, make_store, make_version, prepare

WHO: Any = {"actor": "tester", "now": NOW}


def main() -> int:
    """One archive: `home/`, with a ledger whose log has not been emptied into it."""
    with tempfile.TemporaryDirectory() as folder:
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                _live(make_store(Path(folder)))
                os._exit(0)  # no close: what the log holds stays there
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0, "the life of the store failed"
        with tarfile.open(sys.argv[1], "w:gz") as archive:
            archive.add(Path(folder, "home"), "home")
    return 0


def _live(store: Store) -> None:
    make_version(store, 1)
    make_version(store, 2)
    store.tag("good", "v1", **WHO)
    store.pin("v1", **WHO)
    if hasattr(state_world, "take_in"):
        state_world.take_in(store, 9)
        store.approve("v3", **WHO)
    store.rollback("v1", reason="v2 was no good", **WHO)
    store.claim_batch(drop(store, "zorp 1\n", "again.jsonl"), name="again.jsonl", **WHO)  # known already
    refused = store.claim_batch(drop(store, "zorp 4\n", "four.jsonl"), name="four.jsonl", **WHO)
    store.quarantine_batch(refused.batch.sha256, reason="not usable", **WHO)
    store.resume(**WHO)
    make_version(store, 5, "awaiting_approval")
    round_id = begin(store, 6)  # under way
    prepare(store, round_id, 6)
    store.finish_step(round_id, "parse", {"num_rows": 6})
    store.pause(reason="lunch", **WHO)


if __name__ == "__main__":
    raise SystemExit(main())
