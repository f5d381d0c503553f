"""A merge against the formula written out densely, and weights put back bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from patches.backends import TaskVector
from patches.mask import AccumulateName, Masks, retention_mask, top_mask
from patches.merge import (
    OVER_SAFETY,
    SAFETY,
    Before,
    Patches,
    Setting,
    SparseDelta,
    SparsePatch,
    masks,
    merged,
    merged_patch,
    shifted,
    shortfall,
    touched_fraction,
)
from patches.model import decoder_linears
from tests.tiny_model import assert_same, snapshot

SHAPES = {"layer.a.weight": (6, 10), "layer.b.weight": (8, 4)}
SETTING = Setting(retention_rate=0.7, safety_fraction=0.4, over_safety_fraction=0.3, alpha=1.5, beta=0.5)


def some(seed: int) -> TaskVector:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def make_patches(
    *, joint: bool = False, accumulate: AccumulateName = "opposed", rescale: bool = False, with_claims: bool = False
) -> Patches:
    claims = {}
    if with_claims:
        generator = torch.Generator().manual_seed(9)
        claims = {
            name: (torch.rand(shape, generator=generator) < 0.3, torch.rand(shape, generator=generator) < 0.3)
            for name, shape in SHAPES.items()
        }
    scores = ({}, {}) if joint else ({n: s.abs() for n, s in some(3).items()}, {n: s.abs() for n, s in some(4).items()})
    return Patches(
        some(1), some(2), *scores, joint=joint, accumulate=accumulate, rescale=rescale, claims=claims, seed=17
    )


def naive_masks(patches: Patches, setting: Setting) -> tuple[Masks, Masks]:
    """Top sets by sorting, set differences and claims with Python sets of positions."""
    found: tuple[Masks, Masks] = ({}, {})
    for name, delta in patches.safety.items():

        def top(score: torch.Tensor, fraction: float) -> set[int]:
            flat = score.flatten().tolist()
            return set(sorted(range(len(flat)), key=lambda i: -flat[i])[: int(fraction * len(flat))])

        if patches.joint:
            total = setting.alpha * delta + setting.beta * patches.over_safety[name]
            safety = over = top(total.abs(), setting.safety_fraction)
        else:
            best = top(patches.safety_scores[name], setting.safety_fraction)
            other = top(patches.over_safety_scores[name], setting.over_safety_fraction)
            safety, over = best - other, other - best
        if name in patches.claims:
            by_safety, by_over = (set(m.flatten().nonzero().flatten().tolist()) for m in patches.claims[name])
            if patches.accumulate == "opposed":
                safety, over = safety - by_over, over - by_safety
            if patches.accumulate == "protect":
                safety, over = safety - by_safety - by_over, over - by_safety - by_over
        for masks_of_kind, entries in zip(found, (safety, over), strict=True):
            mask = torch.zeros(delta.numel(), dtype=torch.bool)
            mask[sorted(entries)] = True
            masks_of_kind[name] = mask.view(delta.shape)
    return found


def naive_delta(patches: Patches, setting: Setting) -> TaskVector:
    """alpha MS rS dS + beta MO rO dO, densely."""
    marked_safety, marked_over = naive_masks(patches, setting)
    totals = {}
    for name, delta in patches.safety.items():
        kept = [
            retention_mask(delta.shape, setting.retention_rate, seed=patches.seed, key=f"{kind}:{name}").float()
            for kind in ("safety", "over_safety")
        ]
        scale = 1 / setting.retention_rate if patches.rescale else 1.0
        totals[name] = scale * (
            setting.alpha * marked_safety[name].float() * kept[0] * delta
            + setting.beta * marked_over[name].float() * kept[1] * patches.over_safety[name]
        )
    return totals


def dense(patch: SparsePatch) -> TaskVector:
    totals = {}
    for name, shape in SHAPES.items():
        flat = torch.zeros(shape).flatten()
        flat[patch[name].indices] = patch[name].deltas
        totals[name] = flat.view(shape)
    return totals


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("accumulate", ["opposed", "protect", "off"])
@pytest.mark.parametrize("with_claims", [False, True])
def test_masks_are_the_difference_sets_without_what_was_claimed(
    joint: bool, accumulate: AccumulateName, with_claims: bool
) -> None:
    patches = make_patches(joint=joint, accumulate=accumulate, with_claims=with_claims)
    for found, expected in zip(masks(patches, SETTING), naive_masks(patches, SETTING), strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in SHAPES)
        assert any(bool(mask.any()) for mask in found.values())


@pytest.mark.parametrize("joint", [False, True])
def test_a_patch_with_a_coefficient_of_zero_has_an_empty_set_and_need_not_fill_it(joint: bool) -> None:
    patches = make_patches(joint=joint)
    for name, empty, full in (("alpha", 0, 1), ("beta", 1, 0)):
        setting = replace(SETTING, **{name: 0.0})
        found = masks(patches, setting)
        assert not any(bool(mask.any()) for mask in found[empty].values())
        assert any(bool(mask.any()) for mask in found[full].values())
        assert shortfall(patches, setting, 0.05) == ""


def test_a_merge_falls_short_by_every_set_under_the_floor_that_its_patch_is_meant_to_fill() -> None:
    patches = make_patches()
    kinds = shortfall(patches, SETTING, 0.9).split("; ")
    assert [kind.split(" holds")[0] for kind in kinds] == ["the safety set", "the over-safety set"]
    assert shortfall(patches, SETTING, 0.0) == ""
    zero = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    assert shortfall(replace(patches, over_safety=zero), SETTING, 0.9).startswith("the safety set")
    assert "over-safety" not in shortfall(replace(patches, over_safety=zero), SETTING, 0.9)


@given(
    joint=st.booleans(),
    rescale=st.booleans(),
    with_claims=st.booleans(),
    accumulate=st.sampled_from(["opposed", "protect", "off"]),
    rate=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    coefficients=st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.sampled_from([0.0, 0.3, 1.0])),
)
def test_a_merge_is_the_formula_computed_densely(
    joint: bool,
    rescale: bool,
    with_claims: bool,
    accumulate: AccumulateName,
    rate: float,
    fractions: tuple[float, float],
    coefficients: tuple[float, float],
) -> None:
    patches = make_patches(joint=joint, accumulate=accumulate, rescale=rescale, with_claims=with_claims)
    setting = Setting(rate, *fractions, *coefficients)
    patch, expected = merged_patch(patches, setting), naive_delta(patches, setting)
    found = dense(patch)
    for name, delta in patch.items():
        assert torch.allclose(found[name], expected[name], atol=1e-6)
        assert bool((delta.deltas != 0).all())
        assert delta.indices.tolist() == sorted(set(delta.indices.tolist()))
        assert delta.indices.dtype == torch.int64
        assert delta.deltas.dtype == torch.float32
        assert delta.kinds.dtype == torch.uint8


SMALL = torch.Size((3, 4))
VALUES = st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]), min_size=12, max_size=12)
ENTRIES = st.sets(st.integers(0, 11))


@given(
    values=st.tuples(VALUES, VALUES),
    claimed=st.tuples(ENTRIES, ENTRIES),
    joint=st.booleans(),
    rescale=st.booleans(),
    accumulate=st.sampled_from(["opposed", "protect", "off"]),
    setting=st.builds(
        Setting,
        st.sampled_from([0.3, 0.7, 1.0]),
        st.sampled_from([0.1, 0.5, 1.0]),
        st.sampled_from([0.1, 0.5, 1.0]),
        st.sampled_from([0.0, 1.0, 1.5]),
        st.sampled_from([0.0, 0.5, 1.0]),
    ),
)
def test_a_merge_is_that_of_a_loop_over_entries_also_where_a_patch_is_zero(
    values: tuple[list[float], list[float]],
    claimed: tuple[set[int], set[int]],
    joint: bool,
    rescale: bool,
    accumulate: AccumulateName,
    setting: Setting,
) -> None:
    deltas = [torch.tensor(each).view(SMALL) for each in values]
    claims = [torch.tensor([i in each for i in range(12)]).view(SMALL) for each in claimed]
    patches = Patches(
        {"w": deltas[0]},
        {"w": deltas[1]},
        {"w": deltas[0].abs()},
        {"w": deltas[1].abs()},
        joint=joint,
        accumulate=accumulate,
        rescale=rescale,
        claims={"w": (claims[0], claims[1])},
        seed=17,
    )
    found = merged_patch(patches, setting)["w"]
    expected = naive_entries(patches, setting)
    assert found.indices.tolist() == sorted(expected)
    assert found.deltas.tolist() == pytest.approx([expected[i][0] for i in sorted(expected)], rel=1e-6)
    assert found.kinds.tolist() == [expected[i][1] for i in sorted(expected)]


def naive_entries(patches: Patches, setting: Setting) -> dict[int, tuple[float, int]]:
    """{entry: (what is added, kinds)} of the tensor "w", entry by entry, on Python's own numbers."""
    safety, over = patches.safety["w"].flatten().tolist(), patches.over_safety["w"].flatten().tolist()
    by_safety, by_over = (mask.flatten().tolist() for mask in patches.claims["w"])
    kept_safety, kept_over = (
        retention_mask(SMALL, setting.retention_rate, seed=17, key=f"{kind}:w").flatten().tolist()
        for kind in ("safety", "over_safety")
    )

    def top(scores: list[float], fraction: float) -> list[int]:
        return sorted(range(len(scores)), key=lambda i: -scores[i])[: int(fraction * len(scores))]

    both = [abs(setting.alpha * s + setting.beta * o) for s, o in zip(safety, over, strict=True)]
    best = {i for i in top([abs(s) for s in safety], setting.safety_fraction) if safety[i] != 0}
    other = {i for i in top([abs(o) for o in over], setting.over_safety_fraction) if over[i] != 0}
    together = set(top(both, setting.safety_fraction))
    found = {}
    for i in range(len(safety)):
        in_safety = i in together and safety[i] != 0 if patches.joint else i in best and i not in other
        in_over = i in together and over[i] != 0 if patches.joint else i in other and i not in best
        if patches.accumulate != "off":
            in_safety = in_safety and not by_over[i]
            in_over = in_over and not by_safety[i]
        if patches.accumulate == "protect":
            in_safety = in_safety and not by_safety[i]
            in_over = in_over and not by_over[i]
        in_safety = in_safety and kept_safety[i] and setting.alpha != 0
        in_over = in_over and kept_over[i] and setting.beta != 0
        total = setting.alpha * safety[i] * in_safety + setting.beta * over[i] * in_over
        if total != 0:
            kinds = SAFETY * in_safety + OVER_SAFETY * in_over
            found[i] = (total / setting.retention_rate if patches.rescale else total, int(kinds))
    return found


@pytest.mark.parametrize("joint", [False, True])
def test_an_entry_where_only_one_patch_moves_is_of_that_kind_alone(joint: bool) -> None:
    safety, over = torch.tensor([[0.0, 2.0], [0.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    patches = Patches(
        {"w": safety},
        {"w": over},
        {"w": safety.abs()},
        {"w": over.abs()},
        joint=joint,
        accumulate="off",
        rescale=False,
        claims={},
        seed=1,
    )
    found = merged_patch(patches, Setting(1.0, 1.0, 1.0, 1.0, 1.0))["w"]
    assert found.indices.tolist() == [0, 1, 3]
    assert found.kinds.tolist() == [OVER_SAFETY, SAFETY, OVER_SAFETY]
    assert found.deltas.tolist() == [3.0, 2.0, 1.0]


def test_the_same_patches_and_setting_give_equal_merges_and_another_seed_others() -> None:
    patches = make_patches()
    first, second, other = (dense(merged_patch(p, SETTING)) for p in (patches, patches, replace(patches, seed=18)))
    assert all(torch.equal(first[name], second[name]) for name in SHAPES)
    assert any(not torch.equal(first[name], other[name]) for name in SHAPES)


def test_rescaling_divides_by_the_retention_rate() -> None:
    plain, scaled = (dense(merged_patch(make_patches(rescale=rescale), SETTING)) for rescale in (False, True))
    assert all(torch.allclose(scaled[name], plain[name] / 0.7) for name in SHAPES)


def test_keeping_nothing_merges_nothing() -> None:
    for setting in (replace(SETTING, retention_rate=0), replace(SETTING, alpha=0, beta=0)):
        patch = merged_patch(make_patches(rescale=True), setting)
        assert sum(delta.indices.numel() for delta in patch.values()) == 0
        assert touched_fraction(patch, 92) == 0


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(1.5, 0.5), (1.0, 0.0), (0.0, 1.0)])
def test_an_entrys_kind_names_the_patches_that_wrote_it(joint: bool, alpha: float, beta: float) -> None:
    patches, setting = make_patches(joint=joint), replace(SETTING, alpha=alpha, beta=beta)
    marked = naive_masks(patches, setting)
    for name, delta in merged_patch(patches, setting).items():
        wrote = [
            mask[name]
            & retention_mask(mask[name].shape, setting.retention_rate, seed=17, key=f"{kind}:{name}")
            & torch.tensor(weight != 0)
            for mask, kind, weight in zip(marked, ("safety", "over_safety"), (alpha, beta), strict=True)
        ]
        expected = (wrote[0] * SAFETY + wrote[1] * OVER_SAFETY).flatten()
        assert delta.indices.numel() > 0
        assert delta.kinds.tolist() == expected[delta.indices].tolist()


def test_touched_fraction_counts_the_entries_written() -> None:
    patch = merged_patch(make_patches(), SETTING)
    num = sum(int((delta != 0).sum()) for delta in dense(patch).values())
    assert touched_fraction(patch, 92) == num / 92


def model_patch(model: PreTrainedModel) -> SparsePatch:
    torch.manual_seed(2)
    vector = {name: 0.3 * torch.randn(weight.shape) for name, weight in decoder_linears(model).items()}
    other = {name: 0.3 * torch.randn(weight.shape) for name, weight in decoder_linears(model).items()}
    patches = Patches(vector, other, vector, other, joint=True, accumulate="off", rescale=False, claims={}, seed=1)
    return merged_patch(patches, SETTING)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_model_is_parent_plus_delta_rounded_once_and_is_put_back(
    model: PreTrainedModel, dtype: torch.dtype
) -> None:
    model.to(dtype)  # type: ignore[arg-type]
    before, patch = snapshot(model), model_patch(model)
    with merged(model, patch):
        during = snapshot(model)
    assert_same(model, before)
    for name, tensor in during.items():
        expected = before[name].float().flatten()
        if name in patch:
            expected[patch[name].indices] += patch[name].deltas
        assert torch.equal(tensor.flatten(), expected.to(dtype)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_merge_read_before_is_read_again_only_where_the_next_one_writes_elsewhere(
    model: PreTrainedModel, dtype: torch.dtype
) -> None:
    model.to(dtype)  # type: ignore[arg-type]
    start, patch = snapshot(model), model_patch(model)
    twice = {name: replace(delta, deltas=2 * delta.deltas) for name, delta in patch.items()}
    fewer = {
        name: SparseDelta(delta.indices[::2], delta.deltas[::2], delta.kinds[::2]) for name, delta in patch.items()
    }
    read: Before = {}
    for one in (patch, twice, fewer, patch):
        with merged(model, one):
            expected = snapshot(model)
        kept = dict(read)
        with merged(model, one, read):
            assert_same(model, expected)
        assert_same(model, start)
        assert all((read[name] is kept.get(name)) == (one is twice) for name in one)


def test_subtracting_the_patch_in_bf16_would_not_have_put_the_model_back(model: PreTrainedModel) -> None:
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    name, delta = next(iter(model_patch(model).items()))
    old = decoder_linears(model)[name].detach().flatten()[delta.indices]
    there = (old.float() + delta.deltas).bfloat16()
    assert not torch.equal((there.float() - delta.deltas).bfloat16(), old)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shifted_model_is_moved_by_the_whole_vector_and_put_back(model: PreTrainedModel, dtype: torch.dtype) -> None:
    model.to(dtype)  # type: ignore[arg-type]
    before = snapshot(model)
    places = {name: weight.data_ptr() for name, weight in decoder_linears(model).items()}
    vector = {name: 0.3 * torch.randn(weight.shape) for name, weight in decoder_linears(model).items()}
    with shifted(model, vector):
        for name, delta in vector.items():
            assert torch.equal(decoder_linears(model)[name], (before[name].float() + delta).to(dtype))
        with shifted(model, vector):  # the second patch starts from the first one's model
            pass
        assert all(torch.equal(decoder_linears(model)[n], (before[n].float() + vector[n]).to(dtype)) for n in vector)
    assert_same(model, before)
    # in place: to put it back takes no memory of the device, which may be what has run out
    assert places == {name: weight.data_ptr() for name, weight in decoder_linears(model).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exception_inside_puts_the_model_back_too(model: PreTrainedModel, dtype: torch.dtype) -> None:
    model.to(dtype)  # type: ignore[arg-type]
    before, patch = snapshot(model), model_patch(model)
    with pytest.raises(KeyError), merged(model, patch):
        raise KeyError
    assert_same(model, before)
    vector = {name: torch.ones_like(weight, dtype=torch.float32) for name, weight in decoder_linears(model).items()}
    with pytest.raises(KeyError), shifted(model, vector):
        raise KeyError
    assert_same(model, before)


def test_a_patch_that_does_not_fit_leaves_the_model_as_it_was(model: PreTrainedModel) -> None:
    before, patch = snapshot(model), model_patch(model)
    with pytest.raises(KeyError), merged(model, {**patch, "no.such.weight": next(iter(patch.values()))}):
        pass
    assert_same(model, before)
    vector = {name: torch.ones_like(weight) for name, weight in decoder_linears(model).items()}
    last = list(vector)[-1]
    with pytest.raises(RuntimeError), shifted(model, {**vector, last: torch.ones(3, 5)}):
        pass
    assert_same(model, before)


@pytest.mark.parametrize("joint", [True, False])
def test_a_patch_that_was_not_needed_claims_nothing_and_takes_nothing_from_the_other(joint: bool) -> None:
    torch.manual_seed(0)
    safety = {"w": torch.randn(8, 8)}
    zero = {"w": torch.zeros(8, 8)}
    patches = Patches(
        safety=safety,
        over_safety=zero,
        safety_scores={"w": safety["w"].abs()},
        over_safety_scores={"w": zero["w"]},
        joint=joint,
        accumulate="off",
        rescale=False,
        claims={},
        seed=0,
    )
    merged_delta = merged_patch(patches, Setting(1.0, 0.5, 0.5, 1.0, 1.0))["w"]
    expected = top_mask(safety["w"].abs(), 0.5).flatten().nonzero().flatten()
    assert torch.equal(merged_delta.indices, expected)
    assert set(merged_delta.kinds.tolist()) == {SAFETY}
