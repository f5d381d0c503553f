"""A version's model folder for as long as it is looked at; a collected one is rebuilt beside the store, unpublished."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from state.rows import VersionRow
    from state.store import Store


@contextlib.contextmanager
def model_folder(store: Store, row: VersionRow) -> Iterator[Path]:
    """Where the version's model lies until the block ends; garbage collection leaves it alone meanwhile.

    Raises:
        StoreCorruptError: what is rebuilt is not what was published.
    """
    from state import lock, materialize, scratch

    with lock.kept(store.model_path(row.id)) as is_there:
        if is_there:
            yield store.model_path(row.id)
            return
    with scratch.private_folder(store.home, "rebuilt") as folder:
        materialize.rebuild(store, row.id, folder / row.name)
        yield folder / row.name
