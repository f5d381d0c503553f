"""The durable truth on disk: ledger, versions, overlays, audit. No torch."""
