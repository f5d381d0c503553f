"""A private folder of one command beside the store: swept after a crash, and never while its owner lives."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from state import durable, lock


@contextmanager
def private_folder(parent: Path, purpose: str) -> Iterator[Path]:
    """A new folder `.tmp-<purpose>-…` in `parent`, gone with all in it when the block ends.

    Where `parent` is on a read-only file system it is among the temporary files.
    Its owner holds a lock on the folder itself, which dies with the process: `sweep` leaves it alone until then.
    """
    if durable.is_read_only(parent):
        parent = Path(tempfile.gettempdir())
    while True:
        folder = parent / f"{durable.TEMPORARY_PREFIX}{purpose}-{os.urandom(8).hex()}"
        durable.make_folder(folder)
        with lock.taken(folder) as is_ours:
            if not is_ours or not folder.is_dir():  # a sweep came between the two
                continue
            try:
                yield folder
            finally:
                durable.remove_tree(folder)
            return
