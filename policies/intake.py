"""What of a batch is used: which rows are dropped, whether enough is left, and who learns from which row."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Generic, Protocol, TypeVar

from policies.decision import Decision

EMPTY_PROMPT = "empty_prompt"
EMPTY_RESPONSE = "empty_response"
COPIED_FROM_PROBE = "copied_from_probe"
SHORT_RESPONSE = "short_response"
REFUSAL = "refusal"
DUPLICATE = "duplicate"
LONG_PROMPT = "long_prompt"
NUM_EXAMPLES = 3

PHRASES = {
    "marked_safe": "marked safe",
    "no_harm_label": "without a harm label",
    EMPTY_PROMPT: "with an empty prompt",
    EMPTY_RESPONSE: "with an empty response",
    COPIED_FROM_PROBE: "copied from a probe",
    SHORT_RESPONSE: "with a response of one word",
    REFUSAL: "whose response is itself a refusal",
    DUPLICATE: "that repeat an earlier row",
    LONG_PROMPT: "whose prompt does not fit the model's context",
}
# scripts written without spaces (Thai, Lao, Burmese, Khmer, kana, Han): each character counts as a word
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


class _Turn(Protocol):
    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str: ...


class BatchRow(Protocol):
    """What these policies need of a row: the turns before the response, and the response."""

    @property
    def messages(self) -> Sequence[_Turn]: ...
    @property
    def response(self) -> str: ...


R = TypeVar("R", bound=BatchRow)
TokenCounts = Callable[[Sequence[Sequence[_Turn]]], Sequence[int]]


@dataclass(frozen=True, slots=True)
class IntakeConfig:
    """When a row is used and when a batch is."""

    min_rows: int = 40
    """Fewest usable rows that a batch must have."""
    min_response_words: int = 2
    """Fewest words of a response."""
    max_prompt_tokens: int | None = None
    """Longest prompt in tokens: the context less the room for an answer; None for no limit."""
    max_probe_copy_rate: float = 0.05
    """Largest share of rows, in [0, 1], whose prompt is a probe's before the whole batch is refused."""

    def __post_init__(self) -> None:
        if self.min_rows < 1 or self.min_response_words < 1:
            raise ValueError(
                f"min_rows={self.min_rows}, min_response_words={self.min_response_words}: both must be at least 1"
            )
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 1:
            raise ValueError(f"max_prompt_tokens={self.max_prompt_tokens}: at least 1, or None for no limit")
        if not 0 <= self.max_probe_copy_rate <= 1:
            raise ValueError(f"max_probe_copy_rate={self.max_probe_copy_rate}: must be in [0, 1]")


@dataclass(frozen=True, slots=True)
class Screened(Generic[R]):
    """The usable rows in their order, what was dropped by reason (reading included), and the verdict."""

    kept: list[R]
    dropped: Mapping[str, int]
    decision: Decision
    examples: Mapping[str, tuple[R, ...]] = field(default_factory=dict)
    """By reason, the first rows that were dropped for it."""


@dataclass(frozen=True, slots=True)
class Split:
    """Ascending row indices: learnt from, searched on, and judged on. Each row once at most."""

    train: tuple[int, ...]
    dev: tuple[int, ...]
    gate: tuple[int, ...]

    def counts(self) -> dict[str, int]:
        """Rows on each side, for the ledger."""
        return {"num_train": len(self.train), "num_dev": len(self.dev), "num_gate": len(self.gate)}


@dataclass(frozen=True, slots=True)
class _Screen:
    is_refusal: Callable[[str], bool]
    config: IntakeConfig
    probe_prompts: Collection[str]
    seen: set[tuple[tuple[tuple[str, str], ...], str]] = field(default_factory=set)

    def fault(self, row: BatchRow) -> str | None:
        """Why a row is not used, the first reason that holds, cheap ones before costly ones."""
        return self._fault_of_prompt(row) or self._fault_of_response(row.response) or self._fault_of_pair(row)

    def _fault_of_prompt(self, row: BatchRow) -> str | None:
        prompt = normalised(last_user_turn(row))
        if not prompt:
            return EMPTY_PROMPT
        return COPIED_FROM_PROBE if prompt in self.probe_prompts else None

    def _fault_of_response(self, response: str) -> str | None:
        if not response.strip():
            return EMPTY_RESPONSE
        if _num_words(response) < self.config.min_response_words:
            return SHORT_RESPONSE
        return REFUSAL if self.is_refusal(response) else None

    def _fault_of_pair(self, row: BatchRow) -> str | None:
        pair = tuple((turn.role, turn.content) for turn in row.messages), row.response
        if pair in self.seen:
            return DUPLICATE
        self.seen.add(pair)
        return None


def normalised(text: str) -> str:
    """The text with its case folded and every run of white space as one space."""
    return " ".join(text.casefold().split())


def last_user_turn(row: BatchRow) -> str:
    """What the user asked last before the response; empty when there is no user turn."""
    return next((turn.content for turn in reversed(row.messages) if turn.role == "user"), "")


def screen(
    rows: Sequence[R],
    is_refusal: Callable[[str], bool],
    config: IntakeConfig,
    *,
    num_tokens: TokenCounts | None = None,
    most_tokens: Callable[[Sequence[_Turn]], int] | None = None,
    probe_prompts: Collection[str] = frozenset(),
    dropped_before: Mapping[str, int] | None = None,
) -> Screened[R]:
    """The rows worth learning from, and whether they are enough.

    Every row is kept or counted under exactly one reason. No row's text is in the verdict.

    Args:
        is_refusal: whether a response refuses.
        num_tokens: lengths of the turns of many rows in the model's tokens; asked last, once, about the rows left.
        most_tokens: a length that the turns of one row cannot exceed, where that is cheaper to know: rows that fit by
            it are not counted.
        probe_prompts: a set of probe prompts, each ``normalised``.
        dropped_before: rows that reading left out, by reason; only added to the counts.
    """
    if config.max_prompt_tokens is not None and num_tokens is None:
        raise ValueError("max_prompt_tokens is set but num_tokens is not given; pass both or neither")
    sieve = _Screen(is_refusal, config, probe_prompts)
    faults = [sieve.fault(row) for row in rows]
    if config.max_prompt_tokens is not None and num_tokens is not None:
        _mark_long(rows, faults, config.max_prompt_tokens, num_tokens, most_tokens)
    kept, dropped = list[R](), Counter[str](dropped_before or {})
    examples: dict[str, tuple[R, ...]] = {}
    for row, fault in zip(rows, faults, strict=True):
        if fault is None:
            kept.append(row)
        else:
            dropped[fault] += 1
            examples[fault] = (*examples.get(fault, ()), row)[:NUM_EXAMPLES]
    num_rows = len(rows) + sum((dropped_before or {}).values())
    decision = _decide(num_rows, len(kept), dropped, config)
    return Screened(kept, dict(dropped), decision, examples)


def _mark_long(
    rows: Sequence[BatchRow],
    faults: list[str | None],
    limit: int,
    num_tokens: TokenCounts,
    most_tokens: Callable[[Sequence[_Turn]], int] | None,
) -> None:
    """Give every row that has no fault yet and is longer than ``limit`` tokens its fault."""
    left = [place for place, fault in enumerate(faults) if fault is None]
    if most_tokens is not None:
        left = [place for place in left if most_tokens(rows[place].messages) > limit]
    counts = num_tokens([rows[place].messages for place in left])
    for place, count in zip(left, counts, strict=True):
        if count > limit:
            faults[place] = LONG_PROMPT


def _num_words(text: str) -> int:
    return max(len(text.split(maxsplit=64)), 0 if text.isascii() else len(_UNSPACED.findall(text[:1000])))


def _decide(num_rows: int, num_kept: int, dropped: Mapping[str, int], config: IntakeConfig) -> Decision:
    reasons = []
    copied = dropped.get(COPIED_FROM_PROBE, 0)
    if copied > config.max_probe_copy_rate * num_rows:
        reasons.append(
            f"{copied} of {num_rows} rows are copies of probe prompts, more than "
            f"{config.max_probe_copy_rate:.0%}: the gates could no longer judge what was learnt. "
            "Take those rows out of the batch or out of the probes"
        )
    if num_kept < config.min_rows:
        advice = "" if reasons else ". Gather more rows into one batch and drop it again, or lower inbox.min_rows"
        reasons.append(
            f"{num_kept} of {num_rows} rows are usable, at least {config.min_rows} are needed{_listed(dropped)}{advice}"
        )
    if reasons:
        return Decision(False, tuple(reasons))
    return Decision(True, (f"{num_kept} of {num_rows} rows are usable{_listed(dropped)}.",))


def _listed(dropped: Mapping[str, int]) -> str:
    counts = sorted(((count, why) for why, count in dropped.items() if count), reverse=True)
    parts = ", ".join(f"{count} {PHRASES.get(why, why)}" for count, why in counts)
    return f"; dropped: {parts}" if parts else ""


def split_rows(rows: Sequence[BatchRow], seed_text: str) -> Split:
    """Who learns from which row, so that nothing is judged on what was learnt.

    Rows that share their prompt turns or their response (normalised), also through a third row, stay together.
    Groups stand in the order of SHA-256(seed_text + the group's smallest row digest). The gate takes groups from
    the front until it has a fifth of the rows (20 to 200), then the development side a tenth (8 to 100), and
    training has the rest. Of n < 40 rows the two take at most n // 2 and n // 5. A group too big for a side is
    passed over: one group of all rows is training alone, and the gate is then empty.

    What holds: the split depends on the rows' texts and ``seed_text`` only, not on the order of the rows. Added
    rows that join no groups leave the order of the old groups as it was, so only groups near the two borders
    change sides; a row that ties groups together can move them.
    """
    groups = sorted(_groups(rows).values(), key=lambda group: _digest(seed_text, group.key))
    gate_size, dev_size = _sizes(len(rows))
    gate, rest = _take(groups, target=gate_size, most=min(200, gate_size * 3 // 2))
    num_gate = sum(len(group.members) for group in gate)
    room = max(0, len(rows) * 3 // 4 - num_gate)  # a quarter at least is left to learn from
    dev, train = _take(rest, target=dev_size, most=min(100, dev_size * 3 // 2, room))
    return Split(_indices(train), _indices(dev), _indices(gate))


def keep_first_sides(batches: Sequence[tuple[Sequence[BatchRow], Split]]) -> list[Split]:
    """The splits of batches that came after one another, without rows whose text stood on another side before.

    A batch that repeats or contains an earlier one would else learn what the earlier one's gate judges, or judge on
    what was learnt. The first batch keeps all its rows; of two rows that share a prompt or a response (normalised) and
    whose batches put them on different sides, the later one is left out.
    """
    first: dict[tuple[str, str], str] = {}
    found = []
    for rows, split in batches:
        kept = {
            side: tuple(i for i in indices if all(first.get(tie, side) == side for tie in _ties(rows[i])))
            for side, indices in asdict(split).items()
        }
        for side, indices in kept.items():
            first.update((tie, side) for i in indices for tie in _ties(rows[i]))
        found.append(Split(**kept))
    return found


@dataclass(slots=True)
class _Group:
    key: str
    members: list[int]


def _sizes(num_rows: int) -> tuple[int, int]:
    gate = min(max(round(num_rows * 0.2), 20), 200, num_rows // 2)
    dev = min(max(round(num_rows * 0.1), 8), 100, num_rows // 5)
    return gate, dev


def _take(groups: Sequence[_Group], *, target: int, most: int) -> tuple[list[_Group], list[_Group]]:
    """Groups from the front until there are ``target`` rows, never more than ``most``; and the others."""
    taken, others, size = list[_Group](), list[_Group](), 0
    for group in groups:
        if size < target and size + len(group.members) <= most:
            taken.append(group)
            size += len(group.members)
        else:
            others.append(group)
    return taken, others


def _indices(groups: Sequence[_Group]) -> tuple[int, ...]:
    return tuple(sorted(index for group in groups for index in group.members))


def _groups(rows: Sequence[BatchRow]) -> dict[int, _Group]:
    """Rows that are tied by an equal prompt or response, by the root of their tree."""
    parent = list(range(len(rows)))
    first: dict[tuple[str, str], int] = {}
    digests = []
    for index, row in enumerate(rows):
        ties = list(_ties(row))
        digests.append(_digest(*(text for _, text in ties)))
        for tie in ties:
            parent[_root(parent, index)] = _root(parent, first.setdefault(tie, index))
    groups: dict[int, _Group] = {}
    for index, digest in enumerate(digests):
        group = groups.setdefault(_root(parent, index), _Group(digest, []))
        group.key = min(group.key, digest)
        group.members.append(index)
    return groups


def _ties(row: BatchRow) -> Iterator[tuple[str, str]]:
    prompt = "\n".join(f"{turn.role} {normalised(turn.content)}" for turn in row.messages)
    yield "prompt", prompt
    yield "response", normalised(row.response)


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
