"""What every table of service.toml is made of."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Fraction = Annotated[float, Meta(ge=0, le=1)]
"""A share, from 0 to 1."""
Seconds = Annotated[float, Meta(ge=0)]
"""0 is allowed."""
SomeSeconds = Annotated[float, Meta(gt=0)]
"""0 is not."""
Count = Annotated[int, Meta(ge=0)]
"""0 is allowed."""
Positive = Annotated[int, Meta(ge=1)]
"""0 is not."""
AboveZero = Annotated[float, Meta(gt=0)]
"""Any number above 0."""
Weight = Annotated[float, Meta(ge=0)]
"""A factor of a summand; 0 leaves it out."""


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every table of service.toml."""
