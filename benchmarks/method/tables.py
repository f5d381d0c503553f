"""The results as Markdown, for the terminal and for benchmarks/results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.method import goals
from benchmarks.method.axes import Axes
from benchmarks.method.continual import NUM_ROUNDS
from benchmarks.method.goals import SINGLE_GOALS, TENTH_GOALS
from benchmarks.method.methods import OURS
from benchmarks.method.summary import (
    Numbers,
    Result,
    Spread,
    ability_kept,
    axes_ahead,
    consolidation_of,
    continual_numbers,
    is_ahead,
    num_common,
    single_numbers,
    spreads,
)
from benchmarks.method.supply import NUM_HELD_OUT

SINGLE_COLUMNS = (
    "harm", "harm elsewhere", "plain refused", "over-refusal", "right", "utility", "ability kept", "nll", "degenerate",
    "touched", "sum", "train s",
)  # fmt: skip
ROUND_COLUMNS = (
    "harm", "worst harm", "harm elsewhere", "plain elsewhere", "jailbroken elsewhere", "plain refused", "over-refusal",
    "right", "utility", "ability kept", "nll", "degenerate", "touched", "published",
)  # fmt: skip
SUPPLY_COLUMNS = ("harm", "harm elsewhere", "plain refused", "over-refusal", "right", "utility", "ability kept")
NOT_SHARES = frozenset({"sum", "train s", "nll"})


def tables(results: Sequence[Result], about: Mapping[str, Any]) -> str:
    """Every table, as one text."""
    lines = [
        "# The method on the proving ground",
        "",
        *_about(about),
        "",
    ]
    lines += [
        "Per cent, held-out objects, two of the six jailbreaks held out too; mean over seeds ± standard deviation; no ±: one",
        "seed. A seed chooses categories and rows; the world and its model are one. `harm`: the worse of plain and jailbroken,",
        "mean over the dropped categories. `elsewhere`: the categories not dropped (yet). `plain refused`: plain harmful",
        "questions of all categories that are refused; the others are answered, with the harm or with something else.",
        "`sum`: (1 - harm) + right + utility. `ability kept`: of the ability that lost most, as a share of v0's. `nll`: nats a",
        "token on the references of the worst ability. `touched`: of the decoder's linear weights. `commit`: what the row was",
        "measured with; rows of different commits and machines stand side by side, and their `train s` are no comparison.",
        "Ours was tuned by looking at held-out figures of this world, with these seeds; the baselines were not.",
    ]
    for ground in sorted({result["ground"] for result in results}):
        here = [result for result in results if result["ground"] == ground]
        lines += _single(ground, [result for result in here if result["kind"] == "single"])
        lines += _continual(ground, [result for result in here if result["kind"] == "continual"])
        lines += _supply(ground, [result for result in here if result["kind"] == "supply"])
    return "\n".join(lines)


def by_method(results: Sequence[Result]) -> dict[str, dict[str, Spread]]:
    """Columns of each method of a single round."""
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    for result in results:
        rows[result["method"]].append(single_numbers(result))
    return {name: spreads(found) for name, found in rows.items()}


def by_seed(results: Sequence[Result]) -> dict[str, dict[int, Numbers]]:
    """The same, seed by seed."""
    found: dict[str, dict[int, Numbers]] = defaultdict(dict)
    for result in results:
        found[result["method"]][result["seed"]] = single_numbers(result)
    return found


def _single(ground: str, results: Sequence[Result]) -> list[str]:
    if not results:
        return []
    found = by_method(results)
    families = {result["method"]: result["family"] for result in results}
    ours, seeds = found.get(OURS), by_seed(results)
    lines = ["", f"## {ground}: a single round", ""]
    lines += _header(("method", *SINGLE_COLUMNS, "against ours", "commit"))
    for name in sorted(found, key=lambda each: (_ORDER[families[each]], -found[each]["sum"].mean)):
        verdict = "" if ours is None or name == OURS else _against(seeds[OURS], seeds[name])
        cells = [
            f"**{name}**" if name == OURS else name,
            *(_cell(found[name][column], column) for column in SINGLE_COLUMNS),
        ]
        lines.append(_row([*cells, verdict, _commits(results, name)]))
    if ours is None:
        return lines
    return [*lines, "", *goals.bounds(ours, SINGLE_GOALS), *goals.against_baselines(seeds)]


def _commits(results: Sequence[Result], method: str) -> str:
    """What the rows of a method were measured with; each commit with its seeds where there are several."""
    seeds: dict[str, list[int]] = defaultdict(list)
    for result in results:
        if result["method"] == method:
            seeds[result.get("commit", "unknown")].append(result["seed"])
    if len(seeds) == 1:
        return next(iter(seeds))
    return "; ".join(
        f"{commit} (seed {' and '.join(map(str, sorted(found)))})" for commit, found in sorted(seeds.items())
    )


def _continual(ground: str, results: Sequence[Result]) -> list[str]:
    lines: list[str] = []
    for method in dict.fromkeys(result["method"] for result in results):
        here = [result for result in results if result["method"] == method]
        stories = [result["story"] for result in here]
        seeds = "One seed" if len(here) == 1 else f"{len(here)} seeds"
        lines += ["", f"## {ground}: round after round, {method}", ""]
        lines += [f"{seeds}, measured with {_commits(results, method)}.", ""]
        lines += _header(("after", *ROUND_COLUMNS))
        rounds = [_round(stories, number) for number in range(min(map(len, stories)))]
        for number, (name, numbers) in enumerate(rounds):
            lines.append(
                _row([f"{number}. {name}" if number else name, *(_cell(numbers[c], c) for c in ROUND_COLUMNS)])
            )
        if len(rounds) > NUM_ROUNDS:
            lines += ["", *goals.bounds(rounds[NUM_ROUNDS][1], TENTH_GOALS)]
            lines += goals.of_all_rounds(here, rounds[: NUM_ROUNDS + 1])
        lines += _refused(stories)
        lines += _together(here)
        lines += _reverted(here)
    return lines


def _supply(ground: str, results: Sequence[Result]) -> list[str]:
    """Ours with less and more to learn from, as the results come."""
    if not results:
        return []
    found = by_method(results)
    lines = ["", f"## {ground}: ours with less and with more to learn from", ""]
    lines += [f"Measured on {NUM_HELD_OUT} lookalike objects a category; 12 objects and 150 rows are usual.", ""]
    lines += _header(("learnt from", *SUPPLY_COLUMNS, "commit"))
    return lines + [
        _row([name, *(_cell(row[column], column) for column in SUPPLY_COLUMNS), _commits(results, name)])
        for name, row in found.items()
    ]


def _reverted(results: Sequence[Result]) -> list[str]:
    """What taking one round out again did to its own category and to the others, against the version before."""
    lines = []
    for result in results:
        for reverted in result["reverted"]:
            number = reverted.get("after", min(NUM_ROUNDS, len(result["story"]) - 1))  # not noted at first
            entry = result["story"][number]
            before, after = Axes(**consolidation_of(entry).get("before", entry["axes"])), Axes(**reverted["axes"])
            own, others = [reverted["category"]], reverted["others"]
            lines.append(
                f"- seed {result['seed']}, after round {number}: its own category {before.harm(own):.0%} -> "
                f"{after.harm(own):.0%}, the other dropped ones {before.harm(others):.0%} -> {after.harm(others):.0%} "
                f"(worst {after.worst_harm(others):.0%}), over-refusal {before.over_refusal:.0%} -> {after.over_refusal:.0%}"
            )
    return ["", "One round's patch taken out again (harm before -> after):", *lines] if lines else []


def _together(results: Sequence[Result]) -> list[str]:
    """What learning all batches together changed, right after the round that made it due."""
    lines = []
    for result in results:
        v0 = Axes(**result["story"][0]["axes"])
        for number, entry in enumerate(result["story"]):
            if told := entry.get("consolidated"):
                pairs = _moved(Axes(**told["before"]), Axes(**told["candidate"]), entry["dropped"], v0)
                verdict = "published" if told["published"] else f"not published: {told['reasons'][0]}"
                lines.append(
                    f"- seed {result['seed']}, after round {number}: {pairs}; {told['touched']:.1%} touched; {verdict}"
                )
    return ["", "All batches learnt anew together (before -> after):", *lines] if lines else []


def _moved(before: Axes, after: Axes, dropped: Sequence[str], v0: Axes) -> str:
    columns = {
        "harm": (before.harm(dropped), after.harm(dropped)),
        "worst harm": (before.worst_harm(dropped), after.worst_harm(dropped)),
        "over-refusal": (before.over_refusal, after.over_refusal),
        "right": (before.right, after.right),
        "ability kept": (ability_kept(before, v0), ability_kept(after, v0)),
    }
    return ", ".join(f"{name} {old:.1%} -> {new:.1%}" for name, (old, new) in columns.items())


def _round(stories: Sequence[Sequence[Result]], number: int) -> tuple[str, dict[str, Spread]]:
    entries = [story[number] for story in stories]
    return entries[0]["drop"], spreads([continual_numbers(story[number], story[0]) for story in stories])


def _refused(stories: Sequence[Sequence[Result]]) -> list[str]:
    """Why rounds were not published."""
    found = [
        f"- not published, {entry['drop']}: {'; '.join(entry.get('reasons', ())[:2])}"
        for story in stories
        for entry in story[1:]
        if not entry["published"]
    ]
    return ["", *found] if found else []


def _against(ours: Mapping[int, Numbers], other: Mapping[int, Numbers]) -> str:
    if num_common(ours, other) < 2:
        return "one seed" if num_common(ours, other) else "no seed in common"
    found = "behind" if is_ahead(ours, other) else "ahead" if is_ahead(other, ours) else "within the spread"
    ahead = axes_ahead(other, ours)
    return f"{found}; ahead on {', '.join(ahead)}" if ahead else found


def _cell(value: Spread, column: str) -> str:
    if value.mean != value.mean:
        return ""
    scale, digits = (1.0, 2) if column in NOT_SHARES else (100.0, 1)
    spread = f" ± {value.deviation * scale:.{digits}f}" if value.num > 1 else ""
    return f"{value.mean * scale:.{digits}f}{spread}"


def _header(names: Sequence[str]) -> list[str]:
    return [_row(names), "|" + "---|" * len(names)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _about(about: Mapping[str, Any]) -> list[str]:
    """Where the figures come from: a line for each commit, date and machine, then the rest."""
    lines = [
        f"- measured on {each['date']} with {each['commit']} ({each['machine']}; {each['version']}): runs {each['runs']}"
        for each in about.get("measured", ())
    ]
    rest = {key: value for key, value in about.items() if key != "measured"}
    return lines + [f"- {key}: {_plain(value)}" for key, value in rest.items()]


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


_ORDER = {"ours": 0, "baseline": 1, "ablation": 2}
