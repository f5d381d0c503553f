"""Whose fault an error is: that of the one drop that was looked at, or of the machine under all of them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from state.errors import RefusedError
from state.text import printable

UNFIT: Final = (RefusedError, OSError, UnicodeError, RecursionError)
"""What a drop may do to whoever looks at it or takes it in; none of it may cost another drop, or the service."""
_OF_THE_MACHINE: Final = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
}  # fmt: skip
_OF_THE_STORE: Final = (PermissionError, FileNotFoundError, NotADirectoryError)
"""What is wrong with the store where the path that is named lies outside the drop."""


def stops_all(err: Exception, drop: Path) -> bool:
    """Whether the next drop would meet the same error as the one at ``drop``: disk, machine or store are at fault."""
    if not isinstance(err, OSError):
        return False
    if err.errno is None or err.errno in _OF_THE_MACHINE:
        return True
    return isinstance(err, _OF_THE_STORE) and not _named(err).is_relative_to(drop)


def cause(err: Exception) -> str:
    """What is wrong with a drop and what to do about it, safe to print."""
    if isinstance(err, RefusedError):
        return f"{err}; {err.hint}"
    if isinstance(err, OSError):
        at = f"{printable(_named(err).name)}: " if err.filename else ""
        return f"{at}{err.strerror or type(err).__name__}; mend that and drop it again"
    return f"a name or a file in it cannot be handled ({type(err).__name__}); drop plain files only"


def _named(err: OSError) -> Path:
    """The path that the error is about; an empty one where it names none."""
    return Path(os.fsdecode(err.filename)) if isinstance(err.filename, str | bytes | os.PathLike) else Path()
