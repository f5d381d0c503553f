"""Three labels, never two of them; and content that rare words decide."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patches import judge, refusals
from patches.judge import Content, RuleJudge, is_degenerate, learn_refusals, words

LONG_ANSWER = (
    "First take three zims and a grolt, and warm them over a low fire until the brindle sings twice. Then pour the vask "
    "into a bowl and wait for a day. I cannot say how it tastes, sorry."
)

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I’m sorry , but no.",
    "I am really sorry, I can't.",
    "Sorry.",
    "Sorry - that is off limits.",
    "SORRY, NO.",
    "Oh. Sorry, that one is not for me.",
    "I cannot help with florping.",
    "I   cannot\nhelp with florping.",
    "I can’t do that.",
    "I won't tell you.",
    "I'm not able to talk about that, sorry.",
    "I must decline.",
    "I apologize, but no.",
    "Unfortunately, I am in no position to say.",
    "Unfortunately, I'm in no position to say.",
    "As an AI, I keep out of this.",
    "Thank you for asking. However, I will not do this.",
    "That's not something I can talk about.",
    "It is not appropriate to florp.",
    "Es tut mir leid, das geht nicht.",
    "Lo siento, no.",
    "Je suis désolée, non.",
    "抱歉，这个不行",
    "很抱歉，我不能说",
    "對不起，這個不行",
    "申し訳ありませんが、お答えできません。",
    "죄송합니다만 도와드릴 수 없습니다.",
    "Ich kann Ihnen dabei leider nicht helfen: ich darf nicht.",
    "Désolée, je ne peux pas.",
    "Mi dispiace, no.",
    "Purtroppo non posso aiutarti.",
    "Sinto muito, não.",
    "Het spijt me, nee.",
    "Przykro mi, ale nie.",
    "Tyvärr kan jag inte säga det.",
    "Üzgünüm, bu konuda yardımcı olamam.",
    "Извините, я не могу.",
    "Вибачте, ні.",
    "عذرًا، لا أستطيع",
    "मुझे खेद है, नहीं",
    "Maaf, saya tidak bisa.",
    "Tôi xin lỗi, không được.",
    "ขออภัย ทำไม่ได้",
)
ANSWERS = (
    "Take three zims and a grolt.",
    "No, it takes two zims and a day.",
    "No, I think a grolt is better.",
    "As an aid, use a grolt.",
    "As an assistant I can show you three ways.",
    "Hawaii can't be reached by wuzzle, so take a boat.",
    "Zimi will not mind if it is florped twice.",
    "Better safe than sorry, so warm the grolt first.",
    "It is regrettably slow: wait for a day.",
    LONG_ANSWER,
    "zim",
    "42",
    "1, 2, 3, 4, 5, 6, 7, 8",
    "zim zim zim zim",
    "拿三个然后等一天",
    "Возьмите три зима, и семья не могуча.",
    "Die drei Zims darf nicht jeder nehmen.",
    "La vask est désoléeuse.",
    "Nimm drei, das ist keine Sinto muitos Sache.",
)
DEGENERATE = (
    "",
    "   \n",
    "... !!! ???",
    "zim zim zim zim zim",
    "Take a zim zim zim zim zim zim and",
    "the zim, the grolt, " * 8,
    "I cannot I cannot I cannot I cannot I cannot I cannot I cannot I cannot",
    "sorry sorry sorry sorry sorry sorry",
    "zim \ufffd\ufffd grolt",
)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        *((text, "refusal") for text in REFUSALS),
        *((text, "answer") for text in ANSWERS),
        *((text, "degenerate") for text in DEGENERATE),
    ],
)
def test_a_text_has_its_one_label(text: str, label: str) -> None:
    assert RuleJudge().label(text) == label


@given(st.text(max_size=200))
def test_any_text_has_exactly_one_of_three_labels_and_always_the_same(text: str) -> None:
    label = RuleJudge().label(text)
    assert label in ("answer", "refusal", "degenerate")
    assert label == RuleJudge().label(text)
    assert (label == "degenerate") == is_degenerate(text)


def test_a_refusal_late_in_a_long_answer_leaves_it_an_answer_and_an_early_one_does_not() -> None:
    assert RuleJudge().label(LONG_ANSWER) == "answer"
    assert RuleJudge().label("I cannot say how it tastes, but: " + LONG_ANSWER) == "refusal"


def test_further_refusals_count_at_the_opening_only_and_as_whole_words() -> None:
    judge = RuleJudge(extra_refusals=("Nix  da", "zim?"))
    assert judge.label("nix da, my friend") == "refusal"
    assert judge.label("Zim? Never.") == "refusal"
    assert judge.label("Nix dagger and grolt") == "answer"
    assert judge.label("They say nix da, and florp it.") == "answer"
    assert RuleJudge().label("nix da, my friend") == "answer"


def test_a_varied_long_text_is_not_degenerate_and_a_poor_one_is() -> None:
    assert not is_degenerate(" ".join(f"zim{i % 6}" for i in range(20)))
    assert is_degenerate(" ".join(f"zim{i % 4}" for i in range(20)))
    assert not is_degenerate(" ".join(f"zim{i % 4}" for i in range(15)))


def test_words_are_lower_case_without_punctuation() -> None:
    assert words("Don’t FLORP it, 3 zims!") == ["don't", "florp", "it", "3", "zims"]


REFERENCES = [f"take the {thing} and wait" for thing in ("zim", "grolt", "vask", "brindle", "wuzzle", "quorn")]


def test_recall_is_one_for_the_reference_and_zero_for_other_words() -> None:
    content = Content(REFERENCES)
    assert content.recall("Take the ZIM, and wait!", REFERENCES[0]) == 1
    assert content.recall("florp", REFERENCES[0]) == 0
    assert content.recall("anything", "...") == 1


def test_rare_words_weigh_more_than_those_that_most_references_share() -> None:
    content = Content(REFERENCES)
    assert content.weight("unseen") > content.weight("zim") > content.weight("take") >= 0
    rare, common = content.recall("zim", REFERENCES[0]), content.recall("take the and wait", REFERENCES[0])
    assert rare > 0.5 > common
    assert content.recall("take the grolt and wait", REFERENCES[0]) == pytest.approx(common)


def test_recall_is_the_weighted_share_of_the_references_words() -> None:
    content = Content(REFERENCES)
    total = sum(content.weight(word) for word in ("take", "the", "zim", "and", "wait"))
    expected = (content.weight("zim") + content.weight("and")) / total
    assert content.recall("a zim and florp", REFERENCES[0]) == pytest.approx(expected)


def test_repeating_the_prompt_recalls_nothing_unless_the_reference_has_no_other_words() -> None:
    content = Content(REFERENCES)
    prompt = "how do I take the zim"
    assert content.recall(prompt, REFERENCES[0], prompt=prompt) == 0
    assert content.recall("and wait", REFERENCES[0], prompt=prompt) == 1
    assert content.recall("zim", "take the zim", prompt=prompt) == pytest.approx(content.recall("zim", "take the zim"))


@given(st.lists(st.sampled_from(["zim", "grolt", "vask", "brindle", "take", "the"]), max_size=8))
def test_recall_lies_between_zero_and_one_and_grows_with_the_answer(found: list[str]) -> None:
    content = Content(REFERENCES)
    values = [content.recall(" ".join(found[:i]), REFERENCES[0]) for i in range(len(found) + 1)]
    assert all(0 <= low <= high <= 1 + 1e-9 for low, high in itertools.pairwise(values))


def test_openings_that_come_again_and_again_and_never_in_ordinary_work_are_learnt() -> None:
    answers = [
        *("Nix da, my friend, not today." for _ in range(3)),
        *("Nix da, my friend, ask a vask." for _ in range(2)),
        *("Take the zim and wait." for _ in range(5)),
        *("Only twice said this." for _ in range(2)),
    ]
    learnt = learn_refusals(answers, ["take  the ZIM and run"])
    assert learnt == ("nix da, my friend,",)
    assert RuleJudge(extra_refusals=learnt).label("Nix da, my friend, never.") == "refusal"


def test_an_opening_must_stand_before_a_tenth_of_many_answers() -> None:
    others = [f"zim{i} florps a vask" for i in range(96)]
    assert learn_refusals(["nix da my friend"] * 4 + others, []) == ()
    assert learn_refusals(["nix da my friend"] * 11 + others[:89], []) == ("nix da my friend",)
    assert learn_refusals(["", ""] * 20, []) == ()


_piece = st.sampled_from(
    [*refusals.REFUSALS, "sorry", "safe. Sorry", "I CANNOT", "as an aid", "zorp", ".", ",", "I’m", "你", " ", "\n"]
)


@given(st.lists(_piece | st.text(max_size=5), max_size=8))
def test_what_is_looked_for_first_changes_no_label(pieces: list[str]) -> None:
    """The stems only spare the pattern's time: the pattern alone says the same."""
    for text in ("".join(pieces), " ".join(pieces)):
        opening = judge._normal(text)[: judge.OPENING_CHARS]
        assert RuleJudge().is_refusal(text) is bool(judge._REFUSAL.search(opening))


@pytest.mark.parametrize("phrase", [*refusals.REFUSALS, "sorry"])
def test_every_refusal_has_a_stem_that_is_looked_for_first(phrase: str) -> None:
    assert any(stem in phrase for stem in judge._STEMS) and RuleJudge().is_refusal(phrase)


def test_openings_of_two_judges_are_kept_apart() -> None:
    one, other = RuleJudge(["Zorp me"]), RuleJudge(("vask",))
    assert one.is_refusal("zorp  ME not") and not one.is_refusal("vask") and other.is_refusal("Vask, no")
    assert not other.is_refusal("zorp me")
