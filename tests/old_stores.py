"""Homes as older alignds left them; `stores/make_schema_1.py` says how they were made."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Final

ARCHIVES: Final = sorted((Path(__file__).parent / "stores").glob("schema-*.tar.gz"))
NEWEST: Final = Path(__file__).parent / "stores" / "schema-1-51d4653.tar.gz"
"""Of the last commit before the present schema."""


def unpacked(folder: Path, archive: Path = NEWEST) -> Path:
    """The home of an archive, in a folder."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="fully_trusted")
    return folder / "home"
