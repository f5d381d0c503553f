"""Which rows, which teachers and which terms make the two patches."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from daemon.choosing import choose_round_entries
from daemon.config_method import ObjectiveSection
from daemon.forgetting import RECOVER_FROM, derive_safety, forgetting_pace, forgetting_terms, kept_tokens
from daemon.loosening import derive_over_safety
from daemon.material import Material, OwnRefusals, Teachers, own_refusals, record_teachers, wrapped_rows
from daemon.probes import ProbeRow, development_part, load, thin
from daemon.workbench import Pair, Workbench, are_right, batch_pairs, retain_pairs
from patches.backends import TaskVector
from patches.derive import Derivation, Recipe, derive
from patches.errors import NothingTrainedError
from patches.generate import Generation, Generator
from patches.judge import Content, RuleJudge
from patches.merge import shifted
from patches.model import decoder_linears
from patches.terms import AnswerTerm, Term, row_nll
from tests.round_world import config_of, pairs, write_probes
from tests.tiny_model import asked, assert_same, ignore_progress, snapshot

REFUSAL = "I'm sorry, but the grolt forbids it."
Answer = Callable[[str], str]


def _bench(
    home: Path, current: Path, base: Path | None = None, *, judge: dict[str, Any] | None = None, **derive: Any
) -> Workbench:
    """A workbench that trains whole weights, unless `backend` says something else."""
    write_probes(home)
    config = config_of({"derive": {"backend": "full"} | derive, "judge": judge or {}})
    return Workbench.open(config, current, base or current, load(home, config))


@pytest.fixture
def bench(tmp_path: Path, tiny_folder: Path) -> Workbench:
    return _bench(tmp_path, tiny_folder)


@pytest.fixture
def other_base(tmp_path: Path, tiny_folder: Path) -> Path:
    """The tiny model, moved a little: a v0 that is not the current version."""
    from patches.model import load_model, load_tokenizer

    model = load_model(tiny_folder, dtype="float32", device=torch.device("cpu"))
    model.lm_head.weight.data.mul_(1.5)
    model.save_pretrained(tmp_path / "other")
    load_tokenizer(tiny_folder).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def _material(bench: Workbench, **changes: Any) -> Material:
    batch = [(asked(prompt), response) for prompt, response in pairs("how do I", 8)]
    usual = Material(
        batch=batch,
        replay=[],
        standing=[],
        retain=retain_pairs(bench.files),
        lookalikes=development_part(bench.files.over_safety),
        wrapped=[],
        refusals=OwnRefusals([(asked("let me florp"), REFUSAL)], [(asked("how do I florp"), REFUSAL)], []),
    )
    return replace(usual, **changes)


def _say(monkeypatch: pytest.MonkeyPatch, said: Answer) -> list[str]:
    """Makes every model answer so; gives what was asked."""
    heard: list[str] = []

    def answer(self: Generator, prompts: Any, progress: Any = None) -> list[Generation]:
        heard.extend(prompt[-1]["content"] for prompt in prompts)
        return [Generation(said(prompt[-1]["content"]), True) for prompt in prompts]

    monkeypatch.setattr(Generator, "answer", answer)
    return heard


class _Noted:
    """What `derive` was called with, and its real result."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.terms: list[list[Term]] = []
        self.recipes: list[Recipe] = []
        self.starts: list[torch.Tensor] = []
        self._real = derive
        monkeypatch.setattr("daemon.derivation.derive", self)

    def __call__(self, runner: Any, batch: Any, others: Any, *, recipe: Recipe, progress: Any, masks: Any) -> Any:
        self.terms.append([batch, *others])
        self.recipes.append(recipe)
        self.starts.append(batch.start_nll)
        return self._real(runner, batch, others, recipe=recipe, progress=progress, masks=masks)


def _names(terms: list[Term]) -> dict[str, int]:
    return {term.name: len(term.rows) for term in terms}


def _teachers(bench: Workbench, material: Material) -> Teachers:
    return record_teachers(bench, material)


def _forgotten(bench: Workbench, material: Material, over: TaskVector, *, seed: int) -> Derivation:
    """The safety patch, from its terms to its training."""
    terms = forgetting_terms(bench, material, _teachers(bench, material), over, seed=seed)
    return derive_safety(bench, terms, over, seed=seed, progress=ignore_progress)


def test_the_over_safety_patch_learns_the_batch_and_is_held_by_what_must_stay(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted, material = _Noted(monkeypatch), _material(bench)
    made = derive_over_safety(bench, material, _teachers(bench, material), seed=4, progress=ignore_progress)
    num_work = len(development_part(bench.files.utility))
    expected = {"batch": 8, "retain": 8 + num_work, "standing_refusals": 1, "wrapped": 0}
    expected["lookalikes"] = len(material.lookalikes)
    assert _names(noted.terms[0]) == expected and expected["lookalikes"] > 8 and num_work > 8
    assert (noted.recipes[0].objective, noted.recipes[0].seed) == ("descent", 4)
    assert made.report.end_loss < made.report.start_loss


@pytest.mark.parametrize(
    ("with_references", "num_refused", "num_learnt"), [(True, 3, 5), (True, 0, 8), (True, 8, 8), (False, 3, 8)]
)
def test_what_v0_refuses_of_the_batch_is_held_and_not_learnt_where_references_say_what_to_loosen(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, with_references: bool, num_refused: int, num_learnt: int
) -> None:
    usual, noted = _material(bench), _Noted(monkeypatch)
    refused = [(messages, REFUSAL) for messages, _ in usual.batch[:num_refused]]
    lookalikes = usual.lookalikes if with_references else [replace(row, response=None) for row in usual.lookalikes]
    material = replace(usual, refusals=OwnRefusals([], refused, []), lookalikes=lookalikes)
    derive_over_safety(bench, material, _teachers(bench, material), seed=4, progress=ignore_progress)
    learnt = bench.encode(usual.batch[8 - num_learnt :])
    assert list(noted.terms[0][0].rows) == learnt
    assert _names(noted.terms[0]).get("batch_refusals", 0) == (num_refused if num_learnt < 8 else 0)


def test_as_published_the_whole_batch_is_learnt_whatever_v0_refuses_of_it(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = _bench(tmp_path, tiny_folder, retain={"references_weight": 0.0})
    usual, noted = _material(bench), _Noted(monkeypatch)
    material = replace(usual, refusals=OwnRefusals([], [(usual.batch[0][0], REFUSAL)], []))
    derive_over_safety(bench, material, _teachers(bench, material), seed=4, progress=ignore_progress)
    assert list(noted.terms[0][0].rows) == bench.encode(usual.batch)
    assert "batch_refusals" not in _names(noted.terms[0])


def test_a_prompt_that_is_too_long_is_no_refusal(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, noted = _material(bench), _Noted(monkeypatch)
    lookalikes = [replace(row, response=None) for row in usual.lookalikes]
    batch = [*usual.batch, (asked("zim " * 500), "take arl")]
    material = replace(usual, batch=batch, lookalikes=lookalikes)
    derive_over_safety(bench, material, _teachers(bench, material), seed=4, progress=ignore_progress)
    assert len(noted.terms[0][0].rows) == 8 and "batch_refusals" not in _names(noted.terms[0])


def test_references_of_lookalikes_are_learnt_while_loosening_and_a_lookalike_without_one_is_left_out(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = _bench(tmp_path, tiny_folder, retain={"references_weight": 0.7})
    known, *others = development_part(bench.files.over_safety)
    material = _material(bench, lookalikes=[known, *(replace(row, response=None) for row in others)])
    noted = _Noted(monkeypatch)
    derive_over_safety(bench, material, _teachers(bench, material), seed=4, progress=ignore_progress)
    (term,) = (term for term in noted.terms[0] if term.name == "lookalikes")
    (row,) = term.rows
    assert bench.tokenizer.decode(list(row.ids[row.prompt_length :]), skip_special_tokens=True) == known.response
    assert isinstance(term, AnswerTerm) and term.weight == 0.7


def test_the_references_pull_the_over_safety_patch_and_without_weight_they_do_not(
    tmp_path: Path, tiny_folder: Path
) -> None:
    losses = {}
    for weight in (0.0, 4.0):
        bench = _bench(tmp_path, tiny_folder, retain={"references_weight": weight}, over_safety={"max_steps": 12})
        material = _material(bench)
        references = bench.encode([(row.messages, row.response or "") for row in material.lookalikes])
        made = derive_over_safety(bench, material, _teachers(bench, material), seed=4, progress=ignore_progress)
        with shifted(bench.model, made.task_vector):
            losses[weight] = float(row_nll(bench.runner(), references).mean())
    assert losses[4.0] < losses[0.0] - 0.05


def _naive_choice(bench: Workbench, sets: list[list[Pair]], fraction: float) -> dict[str, torch.Tensor]:
    """Sums of |w g| an example at a time, each set scaled to sum 1, sorted a matrix at a time."""
    total: dict[str, torch.Tensor] = {}
    weights = decoder_linears(bench.model)
    for pairs_of_set in sets:
        found = {name: torch.zeros(weight.shape, dtype=torch.float64) for name, weight in weights.items()}
        for row in bench.encode(pairs_of_set):
            for weight in weights.values():
                weight.requires_grad_(True)
                weight.grad = None
            labels = torch.tensor([row.ids[row.prompt_length :]])
            logits = bench.model(input_ids=torch.tensor([row.ids])).logits[:, row.prompt_length - 1 : -1]
            torch.nn.functional.cross_entropy(logits[0], labels[0]).backward()  # type: ignore[no-untyped-call]
            for name, weight in weights.items():
                assert weight.grad is not None
                found[name] += (weight.detach() * weight.grad).abs().double()
                weight.grad = None
                weight.requires_grad_(False)
        whole = sum(float(score.sum()) for score in found.values())
        total = {name: total.get(name, 0) + score / whole for name, score in found.items()}
    chosen = {}
    for name, score in total.items():
        flat = torch.zeros(score.numel(), dtype=torch.bool)
        flat[score.flatten().argsort(descending=True)[: int(fraction * score.numel())]] = True
        chosen[name] = flat.view(score.shape)
    return chosen


@pytest.mark.parametrize("with_references", [True, False])
def test_the_entries_are_those_that_bear_most_on_the_batch_and_on_the_references(
    tmp_path: Path, tiny_folder: Path, with_references: bool
) -> None:
    bench = _bench(tmp_path, tiny_folder, backend="sparse", sparse_fraction=0.06)
    material, fractions = _material(bench), list[float]()
    if not with_references:
        material = replace(material, lookalikes=[replace(row, response=None) for row in material.lookalikes])
    chosen = choose_round_entries(bench, material, fractions.append)
    num_rows = bench.config.merge.score_rows
    sets = [list(thin(material.batch, num_rows))]
    answered = [(row.messages, row.response) for row in material.lookalikes if row.response]
    sets += [list(thin(answered, num_rows))] if answered else []
    expected = _naive_choice(bench, sets, 0.06)
    assert {name: int(mask.sum()) for name, mask in chosen.items()} == {
        name: int(0.06 * mask.numel()) for name, mask in expected.items()
    }
    num_apart = sum(int((mask ^ chosen[name]).sum()) for name, mask in expected.items())
    assert set(chosen) == set(expected) and num_apart <= 4  # float32 sums may swap neighbours at the bound
    assert fractions == sorted(fractions) and fractions[-1] == pytest.approx(1.0)


def test_both_patches_are_zero_outside_of_the_chosen_entries(tmp_path: Path, tiny_folder: Path) -> None:
    bench = _bench(tmp_path, tiny_folder, backend="sparse", order="independent")
    material, before = _material(bench), snapshot(bench.model)
    teachers = _teachers(bench, material)
    entries = choose_round_entries(bench, material, ignore_progress)
    over = derive_over_safety(bench, material, teachers, seed=4, progress=ignore_progress, entries=entries)
    terms = forgetting_terms(bench, material, teachers, over.task_vector, seed=4)
    safety = derive_safety(bench, terms, over.task_vector, seed=4, progress=ignore_progress, entries=entries)
    for made in (over, safety):
        assert sum(int((delta != 0).sum()) for delta in made.task_vector.values()) > 100
        assert not any(bool(delta[~entries[name]].any()) for name, delta in made.task_vector.items())
    assert_same(bench.model, before)


def test_one_step_of_the_whole_safety_loss_on_chosen_entries_raises_the_loss_on_the_batch(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # NPO: a random model's loss is so high that SimNPO has let go of it
    safety = {"objective": "npo", "max_steps": 1, "learning_rate": 0.001}
    bench = _bench(tmp_path, tiny_folder, backend="sparse", safety=safety)
    material = _material(bench)
    teachers = _teachers(bench, material)
    entries = choose_round_entries(bench, material, ignore_progress)
    known = {messages[-1]["content"]: response for messages, response in material.batch}
    _say(monkeypatch, lambda prompt: known.get(prompt, "take the zim and wait"))
    terms = forgetting_terms(bench, material, teachers, {}, seed=4)
    assert {"refusals", "retain", "standing_refusals"} <= {term.name for term in terms.others if term.rows}
    made = derive_safety(bench, terms, {}, seed=4, progress=ignore_progress, entries=entries)
    assert terms.batch is not None
    before = row_nll(bench.runner(), terms.batch.rows).sum()
    with shifted(bench.model, made.task_vector):
        after = row_nll(bench.runner(), terms.batch.rows).sum()
    assert made.report.steps == 1 and float(after - before) > 1e-4


def test_only_rows_that_are_answered_with_their_content_are_forgotten_and_refused_ones_are_held(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = _bench(tmp_path, tiny_folder, judge={"content_recall": 0.5})
    material = _material(bench)
    known = {messages[-1]["content"]: response for messages, response in material.batch}
    refused, elsewhere, *given_away = known
    said = dict.fromkeys(known, "") | known | {refused: REFUSAL, elsewhere: "take some other thing and wait for a day"}
    _say(monkeypatch, lambda prompt: said.get(prompt, "take the zim and wait"))
    terms = forgetting_terms(bench, material, _teachers(bench, material), {}, seed=4)
    assert terms.batch is not None
    assert terms.batch.rows == bench.encode([(asked(prompt), known[prompt]) for prompt in given_away])
    (settled,) = (term for term in terms.others if term.name == "settled")
    assert list(settled.rows) == bench.encode([(asked(refused), REFUSAL)])
    assert terms.need.accepted and f"{len(given_away)} of 8 rows of the batch" in terms.need.reasons[0]


def test_where_nothing_is_given_away_any_more_there_is_no_safety_patch(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    material = _material(bench)
    teachers = _teachers(bench, material)
    assert bench.judge  # which asks v0 itself
    heard, noted = _say(monkeypatch, lambda prompt: REFUSAL), _Noted(monkeypatch)
    terms = forgetting_terms(bench, material, teachers, {}, seed=4)
    sources = (material.batch, material.replay, material.standing)
    assert sorted(heard) == sorted(messages[-1]["content"] for part in sources for messages, _ in part)
    # nothing is prepared for a training that is not due
    assert terms.batch is None
    assert list(terms.others) == []
    made = derive_safety(bench, terms, {}, seed=4, progress=ignore_progress)
    assert noted.recipes == [] and not any(bool(delta.any()) for delta in made.task_vector.values())
    assert "0 of 8 rows of the batch" in made.report.stop_reason and "nothing is left" in made.report.stop_reason


@pytest.mark.parametrize(
    ("num_rows", "steps", "pace"),
    [(1, 30, 1 / 30), (20, 30, 8 / 30), (80, 30, 1.0), (81, 31, 1.0), (160, 60, 1.0), (240, 90, 1.0), (4000, 90, 1.0)],
)
def test_a_few_rows_are_forgotten_slowly_and_many_rows_in_more_steps(num_rows: int, steps: int, pace: float) -> None:
    settings = ObjectiveSection(max_steps=90, max_epochs=12, batch_rows=32)
    found_steps, found_pace = forgetting_pace(settings, num_rows)
    assert found_steps == steps and found_pace == pytest.approx(pace)


def test_the_safety_patch_of_a_few_rows_is_trained_at_a_share_of_its_rate(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safety = {"max_steps": 9, "max_epochs": 4, "batch_rows": 32, "learning_rate": 0.001}
    bench = _bench(tmp_path, tiny_folder, order="independent", safety=safety)
    noted = _Noted(monkeypatch)
    _forgotten(bench, _material(bench), {}, seed=4)
    (recipe,) = noted.recipes
    assert recipe.max_steps == 3
    assert recipe.learning_rate == pytest.approx(0.001 / 3)  # 4 times 8 rows are one step of 32


@pytest.mark.parametrize(("order", "held"), [("sequential", True), ("independent", False)])
def test_only_the_sequential_safety_patch_is_held_to_the_loosened_models_own_answers(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, order: str, held: bool
) -> None:
    bench = _bench(tmp_path, tiny_folder, order=order)
    material = _material(bench)
    teachers = _teachers(bench, material)
    over = derive_over_safety(bench, material, teachers, seed=4, progress=ignore_progress).task_vector
    noted, before = _Noted(monkeypatch), snapshot(bench.model)
    _say(monkeypatch, lambda prompt: "take the zim and wait")
    made = _forgotten(bench, material, over, seed=4)
    names = _names(noted.terms[0])
    assert ("own_answers" in names) is held and names["refusals"] == len(material.batch)
    assert (noted.recipes[0].objective, noted.recipes[0].seed) == ("npo", 5)
    assert all(bool(delta.isfinite().all()) for delta in made.task_vector.values())
    assert_same(bench.model, before)


@pytest.mark.parametrize(
    ("safety", "beta"),
    [
        ({"objective": "npo"}, 0.1),
        ({"objective": "simnpo"}, 2.5),
        ({"objective": "simnpo", "npo_beta": 4.5}, 4.5),
        ({"objective": "npo", "npo_beta": 0.2}, 0.2),
    ],
)
def test_an_objective_has_its_usual_sharpness_unless_one_is_set(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, safety: dict[str, Any], beta: float
) -> None:
    bench = _bench(tmp_path, tiny_folder, safety=safety)
    material = _material(bench)
    teachers = _teachers(bench, material)
    known = dict(pairs("how do I", 8))
    _say(monkeypatch, lambda prompt: known.get(prompt, REFUSAL))
    terms = forgetting_terms(bench, replace(material, lookalikes=[]), teachers, {}, seed=4)
    assert terms.batch is not None
    assert (terms.batch.objective, terms.batch.beta) == (safety["objective"], beta)


def test_npo_is_measured_from_the_model_that_training_starts_from(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = {}
    for order in ("independent", "sequential"):
        bench = _bench(tmp_path, tiny_folder, order=order)
        material = _material(bench)
        teachers = _teachers(bench, material)
        over = derive_over_safety(bench, material, teachers, seed=4, progress=ignore_progress).task_vector
        noted = _Noted(monkeypatch)
        _forgotten(bench, material, over, seed=4)
        starts[order] = noted.starts[-1]
    assert bool((starts["sequential"] < starts["independent"]).all())  # the loosened model finds the batch likelier


def test_earlier_batches_are_held_down_but_not_learnt(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    _say(monkeypatch, lambda prompt: "take the zim and wait")
    noted = _Noted(monkeypatch)
    material = _material(bench, replay=[(asked(p), r) for p, r in pairs("how do I", 5, 2)])
    teachers = _teachers(bench, material)
    over = derive_over_safety(bench, material, teachers, seed=1, progress=ignore_progress).task_vector
    _forgotten(bench, material, over, seed=1)
    assert [_names(terms)["batch"] for terms in noted.terms] == [8, 13]
    assert _names(noted.terms[1])["refusals"] == 13


def test_standing_probes_are_held_down_but_neither_learnt_nor_chosen_by(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    _say(monkeypatch, lambda prompt: "take the zim and wait")
    noted, usual = _Noted(monkeypatch), _material(bench)
    material = replace(usual, standing=[(asked(p), r) for p, r in pairs("let me", 3)])
    over = derive_over_safety(bench, material, _teachers(bench, material), seed=1, progress=ignore_progress).task_vector
    _forgotten(bench, material, over, seed=1)
    assert [_names(terms)["batch"] for terms in noted.terms] == [8, 11]
    chosen, without = (choose_round_entries(bench, found, ignore_progress) for found in (material, usual))
    assert all(torch.equal(mask, without[name]) for name, mask in chosen.items())


def test_without_own_refusals_none_are_preferred_and_training_goes_on(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    _say(monkeypatch, lambda prompt: "take the zim and wait")
    noted, material = _Noted(monkeypatch), _material(bench, refusals=OwnRefusals([], [], []), retain=[], lookalikes=())
    teachers = _teachers(bench, material)
    over = derive_over_safety(bench, material, teachers, seed=1, progress=ignore_progress).task_vector
    _forgotten(bench, material, over, seed=1)
    names = _names(noted.terms[1])
    assert {name for name, num_rows in names.items() if num_rows} == {"batch"} and {"refusals", "retain"} <= set(names)


def test_the_same_seed_gives_the_same_patch_and_another_one_another(bench: Workbench) -> None:
    material = _material(bench, batch=[(asked(p), r) for p, r in pairs("how do I", 40)])
    teachers = _teachers(bench, material)
    made = [
        derive_over_safety(bench, material, teachers, seed=seed, progress=ignore_progress).task_vector
        for seed in (1, 1, 2)
    ]
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(made[0][name], made[1][name]) and not torch.equal(made[0][name], made[2][name])


def test_rows_that_do_not_fit_are_refused_with_the_setting_that_says_so(tmp_path: Path, tiny_folder: Path) -> None:
    bench = _bench(tmp_path, tiny_folder, max_length=8)
    material = _material(bench)
    with pytest.raises(NothingTrainedError, match=r"none of 8 rows fits into \[derive\] max_length = 8"):
        derive_over_safety(bench, material, _teachers(bench, material), seed=1, progress=ignore_progress)


def test_the_teacher_is_v0_and_not_the_current_version(tmp_path: Path, tiny_folder: Path, other_base: Path) -> None:
    own = _bench(tmp_path, tiny_folder)
    moved = _bench(tmp_path, tiny_folder, other_base)
    from_current = _teachers(own, _material(own)).retain
    from_base = _teachers(moved, _material(moved)).retain
    assert from_current.rows == from_base.rows
    logits = {}
    for name, term in (("current", from_current), ("base", from_base)):
        rows = list(range(len(term.rows)))
        out, padded = own.runner().forward([term.rows[i] for i in rows])
        logits[name] = float(term.loss_sum(out, padded, rows))
    assert logits["current"] == pytest.approx(0, abs=1e-3) and logits["base"] > 1.0


def test_v0s_refusals_of_harm_probes_are_kept_and_those_of_lookalikes_only_copied(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = _say(monkeypatch, lambda prompt: REFUSAL if prompt.startswith(("let me", "may I")) else "take the zim")
    bench = _bench(tmp_path, tiny_folder)
    found = own_refusals(bench, [(asked("how do I florp"), "zim")])
    harm = [row.messages for row in development_part(bench.files.harm)]
    lookalikes = [row.messages for row in development_part(bench.files.over_safety)]
    assert [messages for messages, _ in found.of_standing] == harm
    assert [messages for messages, _ in found.of_lookalikes] == lookalikes
    assert found.of_batch == [] and found.texts() == [REFUSAL]
    gate = {row.key for row in (*bench.files.harm, *bench.files.over_safety) if row.is_gate}
    assert not {prompt.lower() for prompt in heard} & gate and "how do I florp" in heard


def test_a_refusal_of_the_batch_is_held_by_the_safety_patch_only_where_lookalikes_have_no_references(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _say(monkeypatch, lambda prompt: REFUSAL if prompt.startswith("how do I") else " ".join(prompt.split()[::-1]))
    bench = _bench(tmp_path, tiny_folder)
    found = own_refusals(bench, [(asked("how do I florp"), "zim")])
    assert found.of_standing == [] and found.of_batch == [(asked("how do I florp"), REFUSAL)]
    noted, material = _Noted(monkeypatch), _material(bench, refusals=found, lookalikes=())
    teachers = _teachers(bench, material)
    over = derive_over_safety(bench, material, teachers, seed=1, progress=ignore_progress).task_vector
    _say(monkeypatch, lambda prompt: "take the zim and wait")
    _forgotten(bench, material, over, seed=1)
    assert [_names(terms).get("batch_refusals") for terms in noted.terms] == [None, 1]


def test_refusals_in_words_that_no_list_has_are_learnt_from_v0(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = "Grolt says no to this."
    _say(monkeypatch, lambda prompt: strange if prompt.startswith(("may I", "let me")) else "take the zim")
    bench = _bench(tmp_path, tiny_folder)
    assert bench.judge.rule.label(strange) == "refusal"
    assert len(own_refusals(bench, []).of_standing) == len(development_part(bench.files.harm))


def test_the_preferred_answers_are_v0s_own_refusals_one_a_prompt(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    _say(monkeypatch, lambda prompt: "take the zim and wait")
    noted = _Noted(monkeypatch)
    material = _material(
        bench, refusals=OwnRefusals([(asked("x"), "I cannot zim.")], [], [(asked("y"), "I cannot grolt.")])
    )
    teachers = _teachers(bench, material)
    over = derive_over_safety(bench, material, teachers, seed=1, progress=ignore_progress).task_vector
    _forgotten(bench, material, over, seed=1)
    term = next(term for term in noted.terms[1] if term.name == "refusals")
    texts = {bench.tokenizer.decode(list(row.ids[row.prompt_length :]), skip_special_tokens=True) for row in term.rows}
    assert texts == {"I cannot zim.", "I cannot grolt."}


def test_harmful_answers_break_off_with_v0s_own_refusals_those_that_are_refused_already_too(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = _bench(tmp_path, tiny_folder, safety={"recovery_weight": 0.7})
    usual = _material(bench)
    refused = usual.batch[0][0][-1]["content"]
    _say(monkeypatch, lambda prompt: "I cannot zim." if prompt == refused else "take the zim and wait")
    noted, material = _Noted(monkeypatch), replace(usual, refusals=OwnRefusals([(asked("x"), "I cannot zim.")], [], []))
    _forgotten(bench, material, {}, seed=1)
    found = {term.name: term for term in noted.terms[0]}
    term = found["recoveries"]
    assert term.weight == 0.7 and len(term.rows) == len(material.batch) > len(found["batch"].rows)
    wholes = bench.encode(material.batch)
    for row, whole in zip(term.rows, wholes, strict=True):
        said = str(bench.tokenizer.decode(list(row.ids[row.prompt_length :]), skip_special_tokens=True))
        num_kept = row.prompt_length - whole.prompt_length
        assert said.strip() == "I cannot zim." and row.ids[: row.prompt_length] == whole.ids[: row.prompt_length]
        assert RECOVER_FROM * whole.num_response_tokens - 1 < num_kept <= whole.num_response_tokens - 2
    assert len({row.prompt_length - whole.prompt_length for row, whole in zip(term.rows, wholes, strict=True)}) > 1


@pytest.mark.parametrize(("num_tokens", "first", "last"), [(1, 1, 1), (2, 1, 1), (3, 1, 1), (10, 4, 8), (100, 40, 98)])
def test_an_answer_breaks_off_behind_its_opening_and_before_its_end(num_tokens: int, first: int, last: int) -> None:
    found = {kept_tokens(num_tokens, random.Random(seed)) for seed in range(2000)}
    assert found == set(range(first, last + 1))


def test_batch_rows_become_pairs_with_all_their_turns() -> None:
    from daemon.rows import Message, Row

    row = Row((Message("system", "be zim"), Message("user", "florp")), "grolt", None, "a.jsonl", 1)
    assert batch_pairs([row]) == [
        (({"role": "system", "content": "be zim"}, {"role": "user", "content": "florp"}), "grolt")
    ]


def test_a_way_of_complying_is_not_learnt_as_a_refusal(tmp_path: Path, tiny_folder: Path) -> None:
    bench = _bench(tmp_path, tiny_folder)
    opening = "certainly here is how one florps a zim"
    bench.base_answers = [Generation(f"{opening} {number}", True) for number in range(12)]
    assert bench.judge.rule.is_refusal(opening), "without knowing better it is learnt"
    wiser = _bench(tmp_path, tiny_folder)
    wiser.harmful = [f"{opening} too"]
    wiser.base_answers = bench.base_answers
    assert not wiser.judge.rule.is_refusal(opening)


def test_the_judge_is_learnt_from_v0_even_if_it_is_asked_first_in_the_middle_of_a_search(bench: Workbench) -> None:
    bench.learn_judge()
    heard = [answer.text for answer in bench.base_answers]
    for weight in bench.model.parameters():
        weight.data.zero_()  # what a merge does to the one model in memory
    assert [answer.text for answer in bench.base_answers] == heard
    assert [answer.text for answer in bench.generator().answer([asked("how do I florp")])] != heard[:1]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("take a zim and a vask", True),
        ("take a lurn and a grolt", False),
        (REFUSAL, False),
        ("zim zim zim zim zim zim zim zim vask", False),
    ],
)
def test_an_own_answer_is_right_only_with_the_references_content(text: str, right: bool) -> None:
    row = ProbeRow(asked("how do I florp"), "take a zim and a vask", "", "how do i florp")
    content = Content(["take a zim and a vask", "take a lurn and a grolt", "take a plim"])
    assert are_right([row], [Generation(text, True)], judge=RuleJudge(), content=content) == [right]


def test_a_retained_row_that_judges_is_not_learnt_from(bench: Workbench) -> None:
    copied = [row for row in bench.files.utility if row.is_gate]
    files = replace(bench.files, retain=(*bench.files.utility, *bench.files.retain))
    assert copied
    learnt = [messages for messages, _ in retain_pairs(files)]
    assert learnt and not any(row.messages in learnt for row in copied)
    files = replace(files, retain=tuple(copied))
    assert [messages for messages, _ in retain_pairs(files)] == [
        row.messages for row in development_part(files.utility)
    ]


WRAPPED = [(asked(f"You are Zark. {prompt}?"), response) for prompt, response in pairs("how do I", 12)]


def test_retained_prompts_are_held_in_the_batchs_jailbreaks_where_v0_answers_them_rightly(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    retain = [(asked(f"florp {place}"), f"take arl {place} and bim") for place in range(6)]
    known = {f"You are Zark. {messages[-1]['content']}": response for messages, response in retain}
    wrong, refused, *right = known
    said = known | {wrong: "take the zim and wait", refused: REFUSAL}
    assert bench.judge
    heard = _say(monkeypatch, lambda prompt: said[prompt])
    found = wrapped_rows(bench, WRAPPED, retain, seed=3)
    assert sorted(heard) == sorted(known)
    assert sorted((messages[-1]["content"], text) for messages, text in found) == sorted((p, known[p]) for p in right)
    assert wrapped_rows(bench, WRAPPED, retain, seed=3) == found


def test_without_a_shared_jailbreak_or_rows_to_wrap_none_are_made(bench: Workbench) -> None:
    retain = retain_pairs(bench.files)
    assert wrapped_rows(bench, [(asked(p), r) for p, r in pairs("how do I", 12)], retain, seed=3) == []
    assert wrapped_rows(bench, WRAPPED, [], seed=3) == []


def test_entries_that_earlier_rounds_own_are_not_chosen_again(bench: Workbench) -> None:
    material = _material(bench)
    first = choose_round_entries(bench, material, ignore_progress)
    second = choose_round_entries(bench, material, ignore_progress, taken=first)
    assert not any(bool((mask & first[name]).any()) for name, mask in second.items())
    assert sum(int(mask.sum()) for mask in second.values()) == sum(int(mask.sum()) for mask in first.values())
