"""What can go wrong with the store; the class says what the caller does next."""

from state.text import shown


class StoreError(Exception):
    """Root of every error of `state`; `hint` says what the user can do next, or is empty.

    A message may name what stands in a file that somebody else made: it is kept printable, and is not endless.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(shown(message))
        self.hint = hint


class StoreMissingError(StoreError):
    """There is no store in this home."""


class StoreCorruptError(StoreError):
    """A file of the store is not what was written; the message names the file."""


class SchemaError(StoreError):
    """The ledger has another schema than this program's; the hint says what to do, nothing was changed."""


class LockedError(StoreError):
    """Somebody else holds the lock; the message names the process and its purpose."""


class NotFoundError(StoreError):
    """A selector, batch, round or tag names nothing; the hint lists what is known."""


class RefusedError(StoreError):
    """The store is held, or the thing is blocked or in a state that does not allow this."""


class ModelFormatError(StoreError):
    """A model folder cannot be used; the message names the file or tensor."""
