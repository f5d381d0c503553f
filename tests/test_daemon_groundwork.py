"""What a round builds on is what was written: of a consolidation also the import that it trains from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.groundwork import sound_models
from state.errors import StoreCorruptError
from tests.state_world import NOW, learn, make_store, take_in

WHO: Any = {"actor": "tester", "now": NOW}


def test_a_consolidation_looks_at_the_import_that_it_begins_with(tmp_path: Path) -> None:
    with make_store(tmp_path) as store:
        take_in(store, 1)
        store.approve("v1", reason="", **WHO)
        for seed in (2, 3):
            learn(store, seed)
        asked = store.request_consolidation(reason="", **WHO)
        row = store.begin_queued(asked.id, config={}, now=NOW)
        with sound_models(store, row):
            pass
        spoilt = store.model_path(1) / "model-00002-of-00002.safetensors"
        data = bytearray(spoilt.read_bytes())
        data[-1] ^= 1
        spoilt.chmod(0o644)
        spoilt.write_bytes(bytes(data))
        with sound_models(store, replace(row, kind="batch")):
            pass  # v3 is whole, and that is all it builds on
        with pytest.raises(StoreCorruptError, match="is not what was written"), sound_models(store, row):
            pass
