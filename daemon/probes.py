"""Probe and retain files: JSON Lines of {"prompt", "response"?, "category"?}, split by hash.

The development part, about two thirds, may be learnt from and searched on; the gate part only judges. Which part a prompt
belongs to depends on its text alone, so a prompt never changes sides when the file grows.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from daemon.config import Config, ConfigError, digest_inputs
from policies.intake import normalised

T = TypeVar("T")
GATE_BELOW = 85
"""Of the 256 values of a hash's first byte; a third judges, since answers to lookalikes are learnt from few prompts."""


@dataclass(frozen=True)
class ProbeRow:
    """One line of a probe or retain file."""

    messages: tuple[dict[str, str], ...]
    response: str | None
    category: str
    key: str
    """The normalised prompt."""

    @property
    def is_gate(self) -> bool:
        """Whether the row belongs to the gate part."""
        return hashlib.sha256(self.key.encode()).digest()[0] < GATE_BELOW


@dataclass(frozen=True)
class ProbeFiles:
    """Everything that a round measures on and holds on to, beside its batch."""

    harm: tuple[ProbeRow, ...]
    over_safety: tuple[ProbeRow, ...]
    utility: tuple[ProbeRow, ...]
    retain: tuple[ProbeRow, ...]
    digests: dict[str, str]
    """SHA-256 of each file that is there, by setting."""

    def responses(self) -> list[str]:
        """Every response of the files; none of them is a refusal."""
        rows = (*self.harm, *self.over_safety, *self.utility, *self.retain)
        return [row.response for row in rows if row.response]

    def gate_keys(self) -> frozenset[str]:
        """The prompts that only judge, normalised."""
        return frozenset(row.key for row in (*self.harm, *self.over_safety, *self.utility) if row.is_gate)

    def prompts(self) -> frozenset[str]:
        """What every probe asks last, normalised; a batch must not ask it."""
        return frozenset(_question(row.messages) for row in (*self.harm, *self.over_safety, *self.utility))


class _Line(msgspec.Struct):
    """What one line may hold; other keys are passed over."""

    prompt: str | None = None
    messages: list[dict[str, str]] | None = None
    response: str | None = None
    category: str | None = None


def load(home: Path, config: Config) -> ProbeFiles:
    """All probe files of a home; a file that is not there, or that no setting names, gives no rows.

    Raises:
        ConfigError: a file cannot be read, or a line is not usable; names file and line, not the text.
    """
    paths = digest_inputs(home, config)
    found = {key: rows for key, path in paths.items() if (rows := _read_if_there(key, path)) is not None}
    nothing: tuple[tuple[ProbeRow, ...], str] = ((), "")
    return ProbeFiles(
        harm=found.get("probes.harm", nothing)[0],
        over_safety=found.get("probes.over_safety", nothing)[0],
        utility=found.get("probes.utility", nothing)[0],
        retain=found.get("derive.retain.path", nothing)[0],
        digests={key: digest for key, (_, digest) in found.items()},
    )


def _read_if_there(key: str, path: Path) -> tuple[tuple[ProbeRow, ...], str] | None:
    """What `read` gives; None when there is no such file."""
    try:
        return read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as err:
        raise ConfigError(
            f"{path} cannot be read: {err.strerror}; it must be a file that the service's user may read, "
            f"or {key} must name another"
        ) from err


def gate_part(rows: Sequence[ProbeRow], most: int) -> tuple[ProbeRow, ...]:
    """Rows that judge, at most ``most`` of them, spread over the file."""
    return thin([row for row in rows if row.is_gate], most)


def development_part(rows: Sequence[ProbeRow], most: int | None = None) -> tuple[ProbeRow, ...]:
    """Rows that may be learnt from and searched on."""
    part = [row for row in rows if not row.is_gate]
    return thin(part, len(part) if most is None else most)


def thin(rows: Sequence[T], most: int) -> tuple[T, ...]:
    """At most ``most`` of the rows, evenly spread, in their order."""
    if len(rows) <= most:
        return tuple(rows)
    return tuple(rows[i * len(rows) // most] for i in range(most))


def answered(rows: Sequence[ProbeRow]) -> tuple[ProbeRow, ...]:
    """Rows with a response; of ordinary questions only these tell right from wrong."""
    return tuple(row for row in rows if row.response)


def missing_required(files: ProbeFiles, config: Config) -> tuple[str, ...]:
    """What keeps every round of this home from passing its gates, as sentences; empty when all is there."""
    needs: list[tuple[str, Sequence[ProbeRow], str, int]] = [
        (name, rows, path, gate.min_samples)
        for name, rows, path, gate in (
            ("over_safety", files.over_safety, config.probes.over_safety, config.gates.over_safety),
            ("utility", answered(files.utility), config.probes.utility, config.gates.utility),
        )
        if gate.klass == "required"
    ]
    return tuple(
        f"{path}: {_lack(files, name, rows)}, the {name} gate needs {least} in its gate part, a third of the file; put "
        f"harmless prompts there; without them only [gates.{name}] class = 'wanted' lets a round pass, and nothing watches "
        "over it then"
        for name, rows, path, least in needs
        if len(gate_part(rows, 10**9)) < least
    )


def lacking(home: Path, config: Config) -> tuple[str, ...]:
    """`missing_required` of a home's files; where they cannot be used, what is wrong with them."""
    try:
        return missing_required(load(home, config), config)
    except (ConfigError, OSError) as err:  # a line of it, or its permissions, are for its owner to mend
        return (str(err),)


def _lack(files: ProbeFiles, name: str, usable: Sequence[ProbeRow]) -> str:
    """What a probe file has too little of."""
    rows: Sequence[ProbeRow] = getattr(files, name)
    if not rows and f"probes.{name}" not in files.digests:
        return "there is no such file"
    if rows and not usable:
        return f"none of its {len(rows)} prompts has a `response`, which tells right answers from wrong ones"
    return f"{len(gate_part(usable, 10**9))} prompts in its gate part"


def read(path: Path) -> tuple[tuple[ProbeRow, ...], str]:
    """The rows of one file, and its SHA-256.

    Raises:
        OSError: it is not there or cannot be read.
        ConfigError: a line is not usable; names file and line, not the text.
    """
    data = path.read_bytes()
    decode = msgspec.json.Decoder(_Line).decode
    rows: dict[str, ProbeRow] = {}
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if line.strip():
            row = _row(path, number, line, decode)
            rows.setdefault(row.key, row)
    return tuple(rows.values()), hashlib.sha256(data).hexdigest()


def _row(path: Path, number: int, line: bytes, decode: Callable[[bytes], _Line]) -> ProbeRow:
    try:
        found = decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ConfigError(f"{path}, line {number}: {_safe(err)}; one JSON object a line is expected") from err
    messages = found.messages or ([{"role": "user", "content": found.prompt}] if found.prompt else [])
    if any(set(turn) != {"role", "content"} for turn in messages) or not _question(messages):
        raise ConfigError(
            f'{path}, line {number}: needs "prompt", or "messages" of {{"role", "content"}} with a question'
        )
    return ProbeRow(tuple(messages), found.response or None, found.category or "", key_of(messages))


def key_of(messages: Sequence[dict[str, str]]) -> str:
    """What makes two questions one: all turns, normalised."""
    return normalised("\n".join(turn["content"] for turn in messages))


def _question(messages: Sequence[dict[str, str]]) -> str:
    """What the user asks last, normalised; empty when nothing is asked."""
    return normalised(next((turn["content"] for turn in reversed(messages) if turn["role"] == "user"), ""))


def _safe(err: Exception) -> str:
    """The decoder's complaint; it names paths and byte positions, never the text."""
    if isinstance(err, RecursionError):
        return "nested too deeply"
    return str(err) if isinstance(err, msgspec.DecodeError) else "not UTF-8"


def plain(row: Any) -> tuple[dict[str, str], ...]:
    """The prompt turns of a batch row as the chat template takes them."""
    return tuple({"role": turn.role, "content": turn.content} for turn in row.messages)
