"""The steps from a batch's rows to one merged patch, in their order: for the service and for the proving ground."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from daemon.patching import Patching, Progress, Shapes
from daemon.searching import search_merge
from patches.merge import Claims, Setting, SparsePatch, merged_patch


class Done(Protocol):
    """Keeps the result of a step, or gives the one that was kept before."""

    def __call__(self, step: str, work: Callable[[], Mapping[str, Any]], /) -> Mapping[str, Any]:
        """The step's result."""


def make_patch(
    work: Patching, claimed: Callable[[Shapes], Claims], *, done: Done, progress: Callable[[str], Progress]
) -> SparsePatch:
    """Teach, choose, train both patches, score, search and mask; the merge that the search chose.

    Args:
        claimed: the entries that earlier rounds wrote, given the tensors' shapes.
        done: called once a step, in the order of `daemon.steps`.
        progress: the callback of a step.
    """
    done("teach", lambda: work.teach(progress("teach")))
    done("choose", lambda: work.choose(progress("choose"), claimed))
    done("over_safety", lambda: work.derive_over_safety(progress("over_safety")))
    done("safety", lambda: work.derive_safety(progress("safety")))
    done("score", lambda: work.score(progress("score")))
    patches = work.patches(claimed)
    search = done("search", lambda: search_merge(work.bench, patches, work.development_sets(), progress("search")))
    winner = Setting(**search["winner"]["point"])
    done("mask", lambda: work.describe_masks(patches, winner))
    return merged_patch(patches, winner)
