"""A change cut to a rank: the nearest one, its error as measured, the rank that is enough."""

from __future__ import annotations

import math

import pytest
import torch

from patches import lowrank
from patches.lowrank import least_rank, truncate


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9), (1, 5)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_it_is_the_nearest_of_its_rank(shape: tuple[int, int], rank: int) -> None:
    change = matrix(*shape)
    found = truncate(change, rank)
    assert (tuple(found.up.shape), tuple(found.down.shape)) == ((shape[0], rank), (rank, shape[1]))
    singular = torch.linalg.svdvals(change)
    expected = math.sqrt(float((singular[rank:] ** 2).sum() / (singular**2).sum()))
    assert found.relative_error == pytest.approx(expected, abs=1e-6)
    naive = float((change - found.up @ found.down).norm() / change.norm())
    assert found.relative_error == pytest.approx(naive, abs=1e-6)


def test_a_rank_above_the_matrix_loses_nothing_and_is_filled_with_zeros() -> None:
    change = matrix(6, 4)
    found = truncate(change, 9)
    assert found.up.shape == (6, 9) and found.down.shape == (9, 4)
    assert not found.up[:, 4:].any() and not found.down[4:].any()
    torch.testing.assert_close(found.up @ found.down, change)
    assert found.relative_error < 1e-5


def test_no_change_is_no_error() -> None:
    found = truncate(torch.zeros(4, 3), 2)
    assert found.relative_error == 0.0 and not (found.up @ found.down).any()


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        truncate(matrix(3, 3), rank)


def test_long_matrices_are_decomposed_at_random_almost_as_well_and_the_same_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change = matrix(60, 5) @ matrix(5, 50, 1) + 0.01 * matrix(60, 50, 2)
    exact = truncate(change, 5)
    monkeypatch.setattr(lowrank, "EXACT_UP_TO", 10)
    state = torch.random.get_rng_state()
    first, second = truncate(change, 5), truncate(change, 5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.up, second.up) and torch.equal(first.down, second.down)
    assert 0.999 * exact.relative_error < first.relative_error < 1.05 * exact.relative_error
    assert first.spectrum is None and least_rank([first], 0.5) is None


def test_the_least_rank_is_enough_and_one_less_is_not() -> None:
    changes = [matrix(8, 6, 1), 0.1 * matrix(20, 12, 2)]

    def error(rank: int) -> float:
        parts = [truncate(change, rank) for change in changes]
        return math.sqrt(sum(p.squared_error for p in parts) / sum(p.squared_norm for p in parts))

    parts = [truncate(change, 1) for change in changes]
    for bound in (0.9, 0.5, 0.2, 0.05):
        rank = least_rank(parts, bound)
        assert rank is not None and error(rank) <= bound + 1e-6
        assert rank == 1 or error(rank - 1) > bound
    assert least_rank(parts, 0.0) == 12
