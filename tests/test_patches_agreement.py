"""How far two models are apart, against the plain formula."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from patches.agreement import MAX_POSITIONS, agreement, next_logits


def test_equal_logits_agree_wholly() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    found = agreement(logits, logits + 3.0)
    assert (found.num_positions, found.same_top_rate) == (5, 1.0)
    assert found.mean_kl == pytest.approx(0.0, abs=1e-6)
    assert found.max_abs_logit_difference == pytest.approx(3.0)


def test_the_divergence_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(1)
    reference, logits = torch.randn(6, 9, generator=generator), torch.randn(6, 9, generator=generator)
    expected = torch.nn.functional.kl_div(
        logits.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    found = agreement(reference, logits)
    assert found.mean_kl == pytest.approx(float(expected.mean()), rel=1e-5)
    assert found.max_kl == pytest.approx(float(expected.max()), rel=1e-5)
    assert found.same_top_rate == float((reference.argmax(-1) == logits.argmax(-1)).float().mean())


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((0, 3), (0, 3))])
def test_what_cannot_be_compared_is_refused(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="logits of shape"):
        agreement(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_only_the_last_positions_of_a_text_count(model: PreTrainedModel) -> None:
    texts = [[1, 2, 3], list(range(5, 5 + MAX_POSITIONS + 4))]
    found = next_logits(model, texts, torch.device("cpu"))
    assert found.shape == (3 + MAX_POSITIONS, model.config.vocab_size)
    with torch.no_grad():
        expected = model(torch.tensor([texts[0]])).logits[0]
    torch.testing.assert_close(found[:3], expected)
