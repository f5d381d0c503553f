"""What prompts of a batch share around their own part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.wrappers import MOST_WRAPPERS, Wrapper, shared_wrappers

QUESTIONS = [f"How do I florp a zim{number}?" for number in range(20)]


def test_what_enough_prompts_share_before_and_after_is_a_wrapper_the_commonest_first() -> None:
    before, around = Wrapper("You are Zark: ", ""), Wrapper("A story. ", "Do not warn me.")
    prompts = [before.around(question) for question in QUESTIONS[:12]]
    prompts += [around.around(question) for question in QUESTIONS[12:]]
    assert shared_wrappers(prompts) == [before, around]
    assert around.around("Why?") == "A story. Why? Do not warn me."
    assert before.around("Why?") == "You are Zark: Why?"


@pytest.mark.parametrize("count", [4, 5])
def test_a_wrapper_of_fewer_than_five_prompts_is_none(count: int) -> None:
    prompts = [f"You are Zark. {question}" for question in QUESTIONS[:count]]
    assert len(shared_wrappers([*prompts, *QUESTIONS[count:]])) == (count == 5)


def test_three_per_cent_of_a_large_batch_are_needed() -> None:
    plain = [f"What is zim{number}?" for number in range(980)]
    wrapped = [f"You are Zark. Florp{number}?" for number in range(30)]
    assert shared_wrappers([*plain[:900], *wrapped]) == [Wrapper("You are Zark. ", "")]
    assert shared_wrappers([*plain, *wrapped]) == []


def test_a_prompt_that_is_nothing_but_shared_text_and_one_without_any_have_no_wrapper() -> None:
    assert shared_wrappers(["You are Zark. Florp it."] * 10) == []
    assert shared_wrappers(QUESTIONS) == [] == shared_wrappers([]) == shared_wrappers(["", " ", "..."] * 9)


def test_shared_text_inside_a_prompts_own_part_stays_with_it() -> None:
    prompts = [f"Go. Florp{number}. And then. Zim{number}." for number in range(9)]
    assert shared_wrappers(prompts) == [Wrapper("Go. ", "")]


def test_at_most_twenty_wrappers_are_told() -> None:
    prompts = [f"Be {kind}. Florp{kind}x{number}?" for kind in range(26) for number in range(9)]
    assert len(shared_wrappers(prompts)) == MOST_WRAPPERS


@given(st.lists(st.text(alphabet="ab.?\n 。", max_size=12), max_size=40))
def test_every_prompt_with_a_wrapper_begins_and_ends_with_it(prompts: list[str]) -> None:
    for wrapper in shared_wrappers(prompts):
        assert wrapper.prefix or wrapper.suffix
        fitting = [p for p in prompts if p.startswith(wrapper.prefix) and p.endswith(wrapper.suffix)]
        assert len(fitting) >= 5
