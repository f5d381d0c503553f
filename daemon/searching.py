"""The coefficient search of a round: try merges on the development parts, take the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

from daemon.config import Config
from daemon.measuring import ProbeSets, axes, axes_of, measure_sets
from daemon.workbench import Workbench
from patches.errors import EmptyDifferenceSetError
from patches.merge import Before, Patches, Setting, is_something, merged, merged_patch, shortfall, touched_fraction
from patches.model import count_entries, decoder_linears
from policies.consolidation import is_no_worse
from policies.decision import Decision
from policies.search import Point, Space, Trial, Weights, choose, next_point, score

_ABOUT_SETS: Final = (
    "either both patches rank the same entries first, or earlier rounds have claimed theirs; allow larger sets ([merge.search] "
    "top_fractions), score at the tuned models ([merge] score), or lower the floor ([merge] min_set_fraction)"
)


def search_merge(
    bench: Workbench, patches: Patches, sets: ProbeSets, progress: Callable[[float], None]
) -> dict[str, Any]:
    """What was tried, which setting won ("winner"), and why.

    Raises:
        EmptyDifferenceSetError: in every merge that was tried a set is under the configured floor.
    """
    settings = bench.config.merge.search
    is_repair = _is_repair(bench, patches, sets)
    weights, space = weights_of(bench.config), _space(bench.config, patches, is_repair=is_repair)
    deadline = time.monotonic() + settings.max_s
    tried: dict[Point, Trial] = {}
    before: Before | None = {} if patches.joint else None  # difference sets write elsewhere in every merge
    point = next_point(space, {})
    while point is not None and len(tried) < settings.trials and (not tried or time.monotonic() < deadline):
        tried[point] = _try(bench, patches, sets, point, weights=weights, before=before)
        progress(len(tried) / settings.trials)
        point = next_point(space, {known: trial.rank for known, trial in tried.items()})
    winner, why = choose(list(tried.values()), min_gain=settings.min_gain, is_harm_first=is_repair)
    if not why.accepted:
        raise EmptyDifferenceSetError(f"{why.reasons[0]}; {_ABOUT_SETS}")
    return {
        "winner": winner.to_dict(),
        "reasons": [*why.reasons, *_unmerged(patches)],
        "num_trials": len(tried),
        "trials": [trial.to_dict() for trial in tried.values()],
    }


def _is_repair(bench: Workbench, patches: Patches, sets: ProbeSets) -> bool:
    """Whether there is little to forget and nothing to loosen: what is measured then shows where a patch goes too far."""
    if is_something(patches.over_safety) or not is_something(patches.safety):
        return False
    answered = axes(measure_sets(bench, sets, with_loss=False), 0.0).harm_rate
    return answered is not None and answered < bench.config.merge.search.repair_below


def _unmerged(patches: Patches) -> tuple[str, ...]:
    is_alone = is_something(patches.over_safety) and not is_something(patches.safety)
    return ("nothing is forgotten, so nothing is loosened: the over-safety patch is left out",) if is_alone else ()


def _try(
    bench: Workbench, patches: Patches, sets: ProbeSets, point: Point, *, weights: Weights, before: Before | None
) -> Trial:
    patch = merged_patch(patches, _setting(point))
    share = touched_fraction(patch, count_entries(decoder_linears(bench.model).values()))
    with merged(bench.model, patch, before):
        measured = axes(measure_sets(bench, sets, with_loss=False), share)
    floor = bench.config.merge.min_set_fraction
    return Trial(point, measured, score(measured, weights), shortfall(patches, _setting(point), floor))


def _setting(point: Point) -> Setting:
    return Setting(**asdict(point))


def _space(config: Config, patches: Patches, *, is_repair: bool) -> Space:
    """What there is to try; of a patch that is zero every coefficient gives the same merge, so it has one only.

    Where nothing is forgotten, nothing is loosened, and there is one merge: an over-safety patch alone is a jailbreak.
    """
    search = config.merge.search
    has_safety = is_something(patches.safety)
    has_over = has_safety and is_something(patches.over_safety)
    return Space(
        retention_rate=_first(search.retention_rates, has_safety),
        safety_fraction=_first(search.top_fractions, has_safety),
        over_safety_fraction=_first(search.top_fractions, has_over and config.merge.mask != "joint"),
        alpha=_first(search.repair_alphas if is_repair else search.alphas, has_safety),
        beta=_first(search.betas, has_over) if has_safety else (0.0,),
    )


def keeps_all(config: Config, numbers: Mapping[str, Mapping[str, Any]]) -> Decision:
    """Whether a consolidation loses nothing that the current version has.

    Args:
        numbers: `metrics` of the "candidate" and of the "current" version on the same gate probes.
    """
    candidate, current = (axes_of(numbers[name], 0.0) for name in ("candidate", "current"))
    return is_no_worse(candidate, current, weights_of(config), config.merge.search.min_gain)


def _first(values: tuple[float, ...], has_more: bool) -> tuple[float, ...]:
    return values if has_more else values[:1]


def weights_of(config: Config) -> Weights:
    """The configured trade-off between the axes."""
    search = config.merge.search
    return Weights(
        search.harm_weight,
        search.over_refusal_weight,
        search.utility_weight,
        search.degenerate_weight,
        search.touched_weight,
    )
