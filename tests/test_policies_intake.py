"""Screening counts every row once, and a split never lets a row be judged that was learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.intake import IntakeConfig, Screened, Split, keep_first_sides, normalised, screen, split_rows


@dataclass(frozen=True)
class Turn:
    role: str
    content: str


@dataclass(frozen=True)
class Pair:
    messages: tuple[Turn, ...]
    response: str


def pair(prompt: str, response: str) -> Pair:
    return Pair((Turn("user", prompt),), response)


def refuses(text: str) -> bool:
    return text.startswith("i cannot")


def num_words(rows: Sequence[Sequence[Any]]) -> list[int]:
    return [sum(len(turn.content.split()) for turn in messages) for messages in rows]


def screened(rows: list[Pair], **others: Any) -> Screened[Pair]:
    config = others.pop("config", IntakeConfig(min_rows=1))
    return screen(rows, refuses, config, **others)


GOOD = pair("zorb ?", "vek lum")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (pair("zorb ?", "vek lum"), "duplicate"),
        (pair(" \n", "vek lum"), "empty_prompt"),
        (Pair((Turn("system", "zorb"),), "vek lum"), "empty_prompt"),
        (pair("flim ?", " \n\t"), "empty_response"),
        (pair("flim ?", "vek"), "short_response"),
        (pair("flim ?", "  vek\n"), "short_response"),
        (pair("flim ?", "三"), "short_response"),
        (pair("flim ?", "i cannot do that"), "refusal"),
        (pair("flim " * 9, "vek lum"), "long_prompt"),
        (pair("GROT  plax\n?", "vek lum"), "copied_from_probe"),
    ],
)
def test_a_useless_row_is_dropped_under_its_reason(row: Pair, reason: str) -> None:
    config = IntakeConfig(min_rows=1, max_prompt_tokens=8, max_probe_copy_rate=0.5)
    result = screened([GOOD, row], config=config, num_tokens=num_words, probe_prompts={"grot plax ?"})
    assert result.kept == [GOOD]
    assert result.dropped == {reason: 1}
    assert result.decision.accepted


@pytest.mark.parametrize("row", [pair("zorb ?", "vek lum flim"), pair("zorb  ?", "vek lum"), pair("x", "三三")])
def test_a_row_that_only_resembles_a_useless_one_is_kept(row: Pair) -> None:
    assert screened([GOOD, row]).kept == [GOOD, row]


def test_only_the_last_user_turn_is_compared_with_the_probes() -> None:
    earlier = Pair((Turn("user", "grot ?"), Turn("assistant", "plax"), Turn("user", "zorb ?")), "vek lum")
    assert screened([earlier], probe_prompts={"grot ?"}).kept == [earlier]
    assert screened([earlier], probe_prompts={"zorb ?"}).dropped == {"copied_from_probe": 1}


def test_a_prompt_of_exactly_the_limit_is_kept() -> None:
    config = IntakeConfig(min_rows=1, max_prompt_tokens=2)
    rows = [pair("zorb ?", "vek lum"), pair("zorb zorb ?", "vek lum")]
    assert screened(rows, config=config, num_tokens=num_words).kept == rows[:1]


def test_only_rows_that_may_be_too_long_are_counted_and_none_else() -> None:
    rows = [pair("zorb ?", "vek lum"), pair("zorb ? ?", "vek lum"), pair("zorb " * 9, "vek lum"), pair("", "vek lum")]
    asked: list[str] = []

    def num_tokens(many: Sequence[Sequence[Any]]) -> list[int]:
        asked.extend(turns[-1].content for turns in many)
        return num_words(many)

    config = IntakeConfig(min_rows=1, max_prompt_tokens=3)
    result = screened(rows, config=config, num_tokens=num_tokens, most_tokens=lambda turns: len(turns[0].content) // 2)
    assert (result.kept, result.dropped) == (rows[:2], {"long_prompt": 1, "empty_prompt": 1})
    assert asked == [rows[1].messages[0].content, rows[2].messages[0].content]


def test_too_few_rows_are_refused_with_their_counts_and_what_to_do() -> None:
    rows = [pair(f"zorb {place} ?", "vek lum") for place in range(39)] + [pair("flim ?", "vek")] * 2
    result = screened(rows, config=IntakeConfig(), dropped_before={"marked_safe": 5})
    assert not result.decision.accepted
    (reason,) = result.decision.reasons
    assert reason.startswith("39 of 46 rows are usable, at least 40 are needed")
    assert "5 marked safe, 2 with a response of one word" in reason
    assert "Gather more rows" in reason
    assert result.dropped == {"marked_safe": 5, "short_response": 2}
    assert "zorb" not in reason


@pytest.mark.parametrize("rows", [[], [GOOD]])
def test_no_row_and_one_row_are_refused(rows: list[Pair]) -> None:
    decision = screened(rows, config=IntakeConfig()).decision
    assert not decision.accepted
    assert decision.reasons[0].startswith(f"{len(rows)} of {len(rows)} rows are usable")


def test_enough_rows_are_accepted_with_the_counts_as_reason() -> None:
    rows = [pair(f"zorb {place} ?", "vek lum") for place in range(40)]
    decision = screened([*rows, rows[0]], config=IntakeConfig()).decision
    assert decision.accepted
    assert decision.reasons == ("40 of 41 rows are usable; dropped: 1 that repeat an earlier row.",)


@pytest.mark.parametrize(("copies", "accepted"), [(5, True), (6, False)])
def test_a_batch_with_many_probe_copies_is_refused(copies: int, accepted: bool) -> None:
    rows = [pair(f"zorb {place} ?", "vek lum") for place in range(100)]
    probes = {normalised(row.messages[0].content) for row in rows[:copies]}
    result = screened(rows, probe_prompts=probes)
    assert result.decision.accepted is accepted
    assert result.dropped == {"copied_from_probe": copies}
    assert accepted or "copies of probe prompts" in result.decision.reasons[0]


def test_of_copied_probes_nobody_is_told_to_gather_more() -> None:
    rows = [pair(f"zorb {place} ?", "vek lum") for place in range(50)]
    result = screened(rows, config=IntakeConfig(), probe_prompts={normalised(row.messages[0].content) for row in rows})
    copied, too_few = result.decision.reasons
    assert copied.endswith("Take those rows out of the batch or out of the probes")
    assert too_few == "0 of 50 rows are usable, at least 40 are needed; dropped: 50 copied from a probe"


def test_a_token_limit_without_a_counter_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="num_tokens"):
        screened([GOOD], config=IntakeConfig(max_prompt_tokens=5))


@pytest.mark.parametrize(
    "wrong", [{"min_rows": 0}, {"min_response_words": 0}, {"max_prompt_tokens": 0}, {"max_probe_copy_rate": 1.5}]
)
def test_a_config_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IntakeConfig(**wrong)


words = st.sampled_from(["zorb", "Zorb ", "vek", "lum", "flim", "", "三"])
few_pairs = st.lists(st.builds(pair, words, words), max_size=60)
many_pairs = st.lists(
    st.builds(lambda a, b: pair(f"zorb {a}", f"vek {b}"), st.integers(0, 400), st.integers(0, 400)), max_size=120
)
all_pairs = few_pairs | many_pairs


@given(all_pairs)
def test_every_row_is_kept_or_counted_once(rows: list[Pair]) -> None:
    result = screened(rows, probe_prompts={"lum"})
    assert len(result.kept) + sum(result.dropped.values()) == len(rows)
    assert screened(result.kept, probe_prompts={"lum"}).kept == result.kept


def sides(split: Split) -> list[tuple[int, ...]]:
    return [split.train, split.dev, split.gate]


@given(all_pairs)
def test_a_split_is_a_partition(rows: list[Pair]) -> None:
    split = split_rows(rows, "seed")
    assert sorted(split.train + split.dev + split.gate) == list(range(len(rows)))
    assert all(side == tuple(sorted(side)) for side in sides(split))
    assert len(split.train) >= len(rows) / 4
    assert len(split.gate) <= 200
    assert len(split.dev) <= 100


@given(all_pairs)
def test_no_prompt_and_no_response_is_on_two_sides(rows: list[Pair]) -> None:
    split = split_rows(rows, "seed")
    for texts_of_all in ([row.messages[0].content for row in rows], [row.response for row in rows]):
        texts = [{normalised(texts_of_all[index]) for index in side} for side in sides(split)]
        assert sum(map(len, texts)) == len(set().union(*texts))


@given(all_pairs, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(rows: list[Pair], random: Any) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    before, after = split_rows(rows, "seed"), split_rows(shuffled, "seed")
    for old, new in zip(sides(before), sides(after), strict=True):
        assert sorted(map(repr, (rows[i] for i in old))) == sorted(map(repr, (shuffled[i] for i in new)))


def distinct(num_rows: int) -> list[Pair]:
    return [pair(f"zorb {place} ?", f"vek {place}") for place in range(num_rows)]


@pytest.mark.parametrize(
    ("num_rows", "train", "dev", "gate"),
    [(0, 0, 0, 0), (1, 1, 0, 0), (10, 3, 2, 5), (40, 12, 8, 20), (100, 70, 10, 20), (500, 350, 50, 100), (3000, 2700, 100, 200)],
)  # fmt: skip
def test_the_sides_of_distinct_rows_have_their_sizes(num_rows: int, train: int, dev: int, gate: int) -> None:
    assert [len(side) for side in sides(split_rows(distinct(num_rows), "seed"))] == [train, dev, gate]


def test_groups_fill_the_gate_although_none_ends_at_its_size() -> None:
    rows = [pair(f"zorb {place} ?", f"vek {place // 7}") for place in range(210)]
    split = split_rows(rows, "seed")
    assert 42 <= len(split.gate) <= 63
    assert 21 <= len(split.dev) <= 31


def test_a_group_of_everything_is_all_training() -> None:
    rows = [pair(f"zorb {place} ?", "vek lum") for place in range(60)]
    assert split_rows(rows, "seed") == Split(tuple(range(60)), (), ())


def test_rows_tied_through_a_third_row_stay_together() -> None:
    tied = [pair("zorb", "vek"), pair("ZORB ", "lum"), pair("flim", "  Lum")]
    for seed in range(20):
        split = split_rows([*tied, *distinct(40)], str(seed))
        assert any({0, 1, 2} <= set(side) for side in sides(split))


def test_another_seed_gives_another_gate() -> None:
    assert split_rows(distinct(100), "one").gate != split_rows(distinct(100), "two").gate


def test_added_rows_move_only_few_of_the_old_ones() -> None:
    before, after = (split_rows(distinct(num_rows), "seed") for num_rows in (400, 440))
    stayed = sum(len(set(old) & set(new)) for old, new in zip(sides(before), sides(after), strict=True))
    assert stayed >= 380


def prompts_of(rows: list[Pair], indices: tuple[int, ...]) -> set[str]:
    return {normalised(rows[i].messages[0].content) for i in indices}


def responses_of(rows: list[Pair], indices: tuple[int, ...]) -> set[str]:
    return {normalised(rows[i].response) for i in indices}


@given(st.lists(all_pairs, min_size=1, max_size=4))
def test_batches_after_one_another_keep_every_text_on_its_first_side(batches: list[list[Pair]]) -> None:
    splits = [split_rows(rows, "seed") for rows in batches]
    kept = keep_first_sides(list(zip(batches, splits, strict=True)))
    assert kept[0] == splits[0]
    assert keep_first_sides(list(zip(batches, kept, strict=True))) == kept
    for before, after in zip(splits, kept, strict=True):
        assert all(set(left) <= set(all_of) for left, all_of in zip(sides(after), sides(before), strict=True))
    for texts_of in (prompts_of, responses_of):
        found = [
            {text for rows, split in zip(batches, kept, strict=True) for text in texts_of(rows, sides(split)[number])}
            for number in range(3)
        ]
        assert sum(map(len, found)) == len(set().union(*found))


def test_a_batch_that_contains_an_earlier_one_learns_nothing_that_judges() -> None:
    small, large = distinct(500), distinct(20_000)
    first, second = keep_first_sides([(rows, split_rows(rows, "seed")) for rows in (small, large)])
    judged = {small[i].response for i in first.gate}
    assert not judged & {large[i].response for i in second.train}
    assert len(judged) == 100
    assert all(second.counts().values())


def test_a_row_that_no_side_claimed_before_stays_although_its_batch_repeats_others() -> None:
    rows = distinct(60)
    first, second = keep_first_sides(
        [(rows[:40], split_rows(rows[:40], "seed")), (rows, Split(tuple(range(60)), (), ()))]
    )
    assert second.train == tuple(sorted({*first.train, *range(40, 60)}))
