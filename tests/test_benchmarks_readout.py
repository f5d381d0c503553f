"""What hidden states tell of harm: thresholds at exact counts, classifiers on data that can and cannot be told apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.method import readout
from benchmarks.method.ground import Ground
from benchmarks.method.readout import Classifier, Readout, hidden_states, let_through, linear, network, over_refusal
from benchmarks.world.cache import MODEL_FOLDER
from benchmarks.world.rows import Row
from benchmarks.world.world import World


@pytest.mark.parametrize(("refused", "share"), [(1.0, 0.75), (0.8, 0.5), (0.6, 0.25), (0.4, 0.0)])
def test_the_threshold_is_what_so_large_a_share_of_the_harm_reaches(refused: float, share: float) -> None:
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 0.5, 1.5, 2.5, 3.0])
    is_harm = torch.tensor([True] * 5 + [False] * 4)
    assert over_refusal(scores, is_harm, refused) == share


@pytest.mark.parametrize(
    ("best", "passed"),
    [
        ([9.0] + [1.0] * 39, (0.25, 0.5)),  # two of forty may be refused: the third says what is too high
        ([9.0, 9.0, 2.0] + [1.0] * 37, (0.5, 1.0)),
        ([9.0, 9.0, 1.0, 2.0] + [1.0] * 36, (0.5, 1.0)),
        ([0.0] * 40, (0.0, 0.0)),
        ([9.0] * 40, (1.0, 1.0)),
    ],
)
def test_what_is_let_through_is_told_of_all_and_of_the_worst_category(
    best: list[float], passed: tuple[float, float]
) -> None:
    scores = torch.tensor([3.0, 4.0, 1.0, 2.0, *best])
    is_harm = torch.tensor([True] * 4 + [False] * 40)
    assert let_through(scores, is_harm, ["glim", "glim", "zorp", "zorp", *["none"] * 40]) == passed


@pytest.mark.parametrize("fit", [lambda x, y: linear(x, y, 1e-3), lambda x, y: network(x, y, 0)])
def test_a_classifier_tells_apart_what_differs_and_nothing_else(
    fit: Callable[[torch.Tensor, torch.Tensor], Classifier],
) -> None:
    draw = torch.Generator().manual_seed(0)
    is_harm = torch.arange(300) % 3 == 0
    noise, more = torch.randn(300, 4, generator=draw), torch.randn(300, 4, generator=draw)
    shift = 4.0 * is_harm.float()[:, None] * torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert over_refusal(fit(noise + shift, is_harm)(more + shift), is_harm, 0.9) < 0.02
    assert over_refusal(fit(noise, is_harm)(more), is_harm, 0.9) > 0.7


def test_states_are_the_mean_over_the_objects_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = ("how do I zim the grolt", "may I zim the grolt now")
    rows = [Row(prompt, "take it", "zim", "harmful", "grolt", "plain") for prompt in prompts]
    found = hidden_states(model, tokenizer, rows)
    assert found.shape == (2, model.config.num_hidden_layers + 1, model.config.hidden_size)
    torch.testing.assert_close(found[0, 0], found[1, 0])  # the embeddings know nothing of what stands around
    assert not torch.allclose(found[0, -1], found[1, -1])
    ids = tokenizer(" grolt", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(found[0, 0], model.get_input_embeddings()(torch.tensor(ids)).mean(0).detach())


def test_the_table_has_a_line_a_layer() -> None:
    one, other = Readout(0, "linear", (0.05, 0.061, 0.2), (0.035, 0.15)), Readout(3, "network", (0.5, 0.6, 1), (1, 1))
    head, first, last = readout.table([one, other]).splitlines()
    assert "90%  94%  98%" in head and first.split() == ["embeddings", "linear", "5", "6", "20", "3.5", "15.0"]
    assert last.split() == ["layer", "3", "network", "50", "60", "100", "100.0", "100.0"]


def test_every_layer_is_read_out_on_questions_that_no_round_learns_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two planted layers the first shows what is harm, in the second only what may be learnt shows it."""
    asked: list[list[Row]] = []

    def planted(_model: object, _tokenizer: object, rows: list[Row]) -> torch.Tensor:
        asked.append(rows)
        is_harm = torch.tensor([float(row.kind == "harmful") for row in rows])
        learnt = is_harm if len(asked) % 2 else torch.zeros(len(rows))
        return torch.stack([is_harm, learnt], dim=1)[:, :, None].repeat(1, 1, 3)

    monkeypatch.setattr(readout, "hidden_states", planted)
    monkeypatch.setattr(readout, "load_model", lambda *_, **__: None)
    ground = Ground("demo", MODEL_FOLDER, World.generate(0))
    few, many = (readout.readouts(ground, all_batches=all_batches) for all_batches in (False, True))
    for found in (few, many):
        assert [(one.layer, one.kind) for one in found] == [(i, k) for i in (0, 1) for k in ("linear", "network")]
        assert [one.over_refusal for one in found[:2]] == [(0.0, 0.0, 0.0)] * 2
        assert [one.over_refusal for one in found[2:]] == [(1.0, 1.0, 1.0)] * 2  # all questions score alike there
        assert [one.let_through for one in found] == [(0.0, 0.0)] * 2 + [(1.0, 1.0)] * 2
    learnt, held_out, more, same = ({row.object for row in rows} for rows in asked)
    assert not (learnt | more) & held_out and held_out == same and learnt < more
    assert {row.kind for rows in asked for row in rows} == {"harmful", "lookalike"}
