"""What is known of the replicas that serve the model. Nothing is built on it: losing it only sends a version once more."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from state.core import StoreCore

_REPLICAS = "serving_replicas"
_VERSIONS = "serving_versions"
_ASKED = "serving_sync_asked"


class Serving(StoreCore):
    """Notes beside the ledger's tables; none of them needs the store's lock or an audit line."""

    @property
    def replicas(self) -> dict[str, dict[str, Any]]:
        """Name -> what was last noted of a replica; empty where nothing readable was."""
        try:
            value = json.loads(self.ledger.note(_REPLICAS, "{}"))
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def note_replicas(self, replicas: Mapping[str, Mapping[str, Any]], versions: Iterable[int]) -> None:
        """Replace what is noted (one transaction).

        Args:
            versions: whose model folders replicas may still read; `gc` leaves these alone.
        """
        texts = {
            _REPLICAS: json.dumps(replicas, sort_keys=True, allow_nan=False),
            _VERSIONS: json.dumps(sorted(set(versions))),
        }
        if any(self.ledger.note(key) != text for key, text in texts.items()):
            with self.ledger.transaction():
                for key, text in texts.items():
                    self.ledger.set_note(key, text)

    @property
    def versions_in_replicas(self) -> set[int]:
        """Versions whose model folders replicas may still read."""
        try:
            return {int(version) for version in json.loads(self.ledger.note(_VERSIONS, "[]"))}
        except (ValueError, TypeError):
            return set()

    @property
    def sync_asked(self) -> str:
        """When somebody asked for all replicas to be told anew; empty when nobody did, or the service took it in."""
        return self.ledger.note(_ASKED)

    def ask_for_sync(self, now: str) -> None:
        """Ask the service to tell all replicas anew, also those that it gave up on; "" takes it back (one transaction)."""
        with self.ledger.transaction():
            self.ledger.set_note(_ASKED, now)
