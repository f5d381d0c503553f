"""What the steps of a round recorded, in plain words. Pure: a view and a style in, lines out; `--json` has the raw keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from daemon.render import View, short
from daemon.terminal import Style, fields, number, percent, printable
from policies.intake import PHRASES

TITLES: Final = {
    "parse": "parse: the batch",
    "gather": "gather: all batches",
    "teach": "teach: what is learnt and what is held, in rows",
    "choose": "choose: entries that may be trained",
    "score": "score: which entries matter",
    "merge": "merge: the candidate",
    "remerge": "remerge: the candidate",
}
_TAUGHT: Final = {
    "num_batch": "of the batch, or of all together",
    "num_replay": "of earlier batches, replayed",
    "num_standing": "standing harm probes",
    "num_lookalikes": "lookalikes",
    "num_retain": "retained rows",
    "num_wrapped": "retained rows in jailbreaks of the batch",
    "num_standing_refusals": "v0's refusals of standing harm probes",
    "num_batch_refusals": "v0's refusals of the batch",
}
_MAX_FILES: Final = 5
_MAX_PAIRS: Final = 40


def step_sections(steps: Mapping[str, Any], style: Style) -> Iterable[tuple[str, list[str]]]:
    """Titles and lines of some finished steps of a round, as they come."""
    for name, found in steps.items():
        lines_of = _LINES.get(name, other_lines)
        yield TITLES.get(name, name.replace("_", " ")), lines_of(found if isinstance(found, Mapping) else {}, style)


def rows_lines(stats: Mapping[str, Any], style: Style) -> list[str]:
    """What was read of a batch, what of it is used for what, and what was dropped and why."""
    if "num_records" not in stats:
        return other_lines(stats, style)
    pairs = [
        ("rows", f"{number(stats['num_records'])} read, {number(stats['num_rows'])} usable"),
        ("used", _uses(stats)),
        ("dropped", "; ".join(_dropped(stats))),
        ("files", "; ".join(_files(stats.get("files") or []))),
        ("warnings", "; ".join(map(str, stats.get("warnings") or []))),
        ("signed", _signer(stats.get("signature") or {})),
    ]
    return fields([(name, printable(text)) for name, text in pairs], style)


def _signer(signature: Mapping[str, str]) -> str:
    return f"by {signature['signer']}, key {signature['key']}" if signature else ""


def _uses(stats: Mapping[str, Any]) -> str:
    words = {"num_train": "to learn from", "num_dev": "to search on", "num_gate": "to judge on"}
    return ", ".join(f"{number(stats[key])} {word}" for key, word in words.items() if key in stats)


def _dropped(stats: Mapping[str, Any]) -> list[str]:
    places = stats.get("dropped_at") or {}
    told = {
        why: f"{number(count)} {PHRASES.get(why, why.replace('_', ' '))}" for why, count in stats["dropped"].items()
    }
    return [
        f"{text} (first: {places[why].replace('; ', ', ')})" if why in places else text for why, text in told.items()
    ]


def _files(files: Sequence[View]) -> list[str]:
    told = [f"{file['name']}: {number(file['rows'])} rows, {_form(file)}" for file in files[:_MAX_FILES]]
    more = len(files) - len(told)
    return told + ([f"and {more} more"] if more > 0 else [])


def _form(file: View) -> str:
    packed = f" in {file['compression']}" if file.get("compression") else ""
    return f"{file['signature']} ({file['format']}{packed})"


def _taught_lines(found: Mapping[str, Any], style: Style) -> list[str]:
    pairs = [(_TAUGHT.get(key, words_of(key)), _value(value)) for key, value in found.items()]
    return fields([(printable(name), text) for name, text in pairs], style)


def _chosen_lines(found: Mapping[str, Any], style: Style) -> list[str]:
    sizes = list((found.get("sizes") or {}).values())
    spread = f"{percent(min(sizes))} to {percent(max(sizes))} of each of {len(sizes)} matrices" if sizes else ""
    return fields([("asked for", percent(found.get("fraction"))), ("chosen", spread)], style)


def _score_lines(found: Mapping[str, Any], style: Style) -> list[str]:
    if found.get("kind") == "none":
        return ["nothing: the patches are merged as they are"]
    return fields([("scored by", str(found.get("kind"))), ("rows", number(found.get("num_rows")))], style)


def _candidate_lines(found: Mapping[str, Any], style: Style) -> list[str]:
    touched = found.get("touched") or {}
    share, count = percent(touched.get("fraction")), number(touched.get("num_entries"))
    text = f"{share}, {count} entries in {len(touched.get('per_tensor') or {})} tensors"
    pairs = [
        ("touched", text if touched.get("num_entries") else "nothing"),
        ("patch", short(found["patch"]) if found.get("patch") else ""),
        ("files", f"{len(found.get('files') or {})} of the model"),
    ]
    return fields(pairs, style)


def other_lines(found: Mapping[str, Any], style: Style) -> list[str]:
    """Whatever else was recorded: `a b  value` lines; what is nested or long is counted, not shown."""
    pairs = [(printable(words_of(key)), printable(_value(value))) for key, value in found.items()]
    more = len(pairs) - _MAX_PAIRS
    lines = fields(pairs[:_MAX_PAIRS], style)
    return lines + ([f"and {more} more (`--json` shows all)"] if more > 0 else [])


def words_of(key: str) -> str:
    """A recorded key as a person reads it: `num_rows` is `rows`."""
    return str(key).removeprefix("num_").replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, Mapping | list):
        numbers = [item for item in (value.values() if isinstance(value, Mapping) else value) if _is_number(item)]
        spread = f", {number(min(numbers))} to {number(max(numbers))}" if numbers else ""
        return f"{len(value)} values{spread}" if value else ""
    text = "" if value is None else str(value)
    return short(text) if len(text) == 64 else text


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_LINES: Final = {
    "parse": rows_lines,
    "teach": _taught_lines,
    "choose": _chosen_lines,
    "score": _score_lines,
    "merge": _candidate_lines,
    "remerge": _candidate_lines,
}
