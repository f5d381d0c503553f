"""Who vouches for a batch: detached Ed25519 signatures, made by `alignd submit --sign` or by openssl, checked at intake.

What is signed is the file, byte for byte; of several files in a folder it is the list that `sha256sum` prints of them, in
order of their names. What is checked is the copy in the store, which nobody who dropped it can change.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daemon.config import Config, ConfigError
from daemon.drops import SIGNATURE_BYTES
from state import signed
from state.batches import file_sha256, members
from state.layout import Layout

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_HOW: Final = "`alignd submit --sign KEY.pem` drops it again with one"


class UnsignedError(Exception):
    """Nobody who is trusted has signed these bytes; says what was wrong."""

    def __init__(self, what: str) -> None:
        super().__init__(signed.NOT_VOUCHED + what)


def check(store: Layout, config: Config, sha256: str) -> dict[str, str]:
    """Who signed a stored batch: `{"signer", "key"}`; empty when nobody need have and nobody trusted has.

    Raises:
        UnsignedError: a signature is required, and there is none that holds.
        ConfigError: a signature is required, and no key is there to check it with.
    """
    is_required = config.inbox.require_signature
    keys = trusted(store.home / config.inbox.signers)
    if is_required and not keys:
        raise ConfigError(no_keys(store.home / config.inbox.signers))
    try:
        return _signer(store, keys, sha256)
    except UnsignedError:
        if is_required:
            raise
        return {}


def _signer(store: Layout, keys: Mapping[str, Ed25519PublicKey], sha256: str) -> dict[str, str]:
    from cryptography.exceptions import InvalidSignature

    signatures = signed.signatures_of(store, sha256)
    if not signatures:
        raise UnsignedError(f"it came without a signature, which [inbox] require_signature asks for; {_HOW}")
    right_size = [signature for signature in signatures if len(signature) == SIGNATURE_BYTES]
    if not right_size:
        raise UnsignedError(
            f"its signature has {len(signatures[0])} bytes; an Ed25519 signature has {SIGNATURE_BYTES}, as openssl "
            f"writes it (no PEM, no base64); {_HOW}"
        )
    with _message(store.batch_content(sha256)) as message:
        for signature, (name, key) in product(dict.fromkeys(right_size), keys.items()):
            try:
                key.verify(signature, message)
            except InvalidSignature:
                continue
            return {"signer": name, "key": fingerprint(key)}
    raise UnsignedError(
        f"none of the trusted signers ({', '.join(keys) or 'there is none'}) signed these bytes: they were changed after "
        f"the signing, or somebody else signed; {_HOW} of a trusted key"
    )


def sign(key: Ed25519PrivateKey, path: Path) -> bytes:
    """The signature of what is to be dropped, a file or a folder.

    Raises:
        RefusedError: a member is no regular file.
    """
    with _message(path) as message:
        return key.sign(message)


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """A PEM file without a password, as `openssl genpkey -algorithm ed25519` writes it.

    Raises:
        ConfigError: it is missing or something else; never quotes it.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    how = "`openssl genpkey -algorithm ed25519 -out KEY.pem` makes one"
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as err:
        raise ConfigError(f"{path}: {err.strerror}; name a private key; {how}") from err
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path} is no private key in PEM without a password; {how}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is no Ed25519 key; {how}")
    return key


def trusted(folder: Path) -> dict[str, Ed25519PublicKey]:
    """The public keys that are trusted, by the name of their file without `.pem`; files that hold none are passed over."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    found = {}
    for path in sorted(folder.glob("*.pem")):
        try:
            key = load_pem_public_key(path.read_bytes())
        except (OSError, ValueError, UnsupportedAlgorithm):
            continue
        if isinstance(key, Ed25519PublicKey):
            found[path.stem] = key
    return found


def no_keys(folder: Path) -> str:
    """What to say when a signature is required and nobody is trusted."""
    return (
        f"[inbox] require_signature is on, and {folder} holds no Ed25519 public key in PEM; put one there: "
        f"`mkdir -p {folder} && openssl pkey -in KEY.pem -pubout -out {folder}/NAME.pem`"
    )


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the raw public key, the first 16 hex digits."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


@contextmanager
def _message(path: Path) -> Iterator[Any]:
    """What is signed; a large file is mapped and not read."""
    found = members(path)
    if len(found) != 1:
        yield b"".join(_line(file_sha256(file), os.fsencode(name)) for name, file in found)
        return
    ((_, only),) = found
    if only.stat().st_size == 0:
        yield b""
        return
    with only.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped


def _line(digest: str, name: bytes) -> bytes:
    """A line of `sha256sum`: names that would break it are escaped, and the line begins with a backslash."""
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if escaped != name else b"") + digest.encode() + b"  " + escaped + b"\n"
