"""Which entries a round may change: chosen before anything is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch

from daemon.material import Material, references, trainable
from daemon.probes import thin
from daemon.workbench import Workbench
from patches.errors import NothingTrainedError
from patches.mask import Masks, top_masks
from patches.snip import scores


def choose_entries(
    bench: Workbench, material: Material, progress: Callable[[float], None], *, taken: Masks | None = None
) -> Masks:
    """Which entries of the decoder both patches may change: those that bear most on the batch and on the lookalikes.

    SNIP scores |w dL/dw| at the current model, of the harmful answers and of the lookalikes' references, each scaled to
    sum 1, and of every matrix the share [derive] sparse_fraction that scores highest. Ranked over all matrices together most
    entries lie in the first layer, and what every answer is made from goes wrong with it. Chosen before training, so that
    the training itself makes do with them and nothing has to be cut afterwards.

    Args:
        taken: entries that earlier rounds own and that are not to be chosen.
    """
    settings = bench.config
    rows = trainable(bench, thin(material.batch, settings.merge.score_rows))
    answered = bench.encode(thin(references(material.lookalikes), settings.merge.score_rows))
    sets = [part for part in (rows, answered) if part]
    found: dict[str, torch.Tensor] = {}
    for number, part in enumerate(sets):
        score = scores(bench.runner(), part, {}, kind="base", progress=_part(progress, number, len(sets)))
        whole = sum(float(each.sum()) for each in score.values())
        if whole == 0:
            raise NothingTrainedError(f"no entry has a gradient on {len(part)} rows: nothing to choose from")
        found = {name: each / whole + found.get(name, 0) for name, each in score.items()}
    chosen = top_masks(
        {
            name: score.masked_fill(taken[name], 0) if taken and name in taken else score
            for name, score in found.items()
        },
        settings.derive.sparse_fraction,
    )
    return {name: mask & ~taken[name] if taken and name in taken else mask for name, mask in chosen.items()}


def _part(progress: Callable[[float], None], number: int, count: int) -> Callable[[float], None]:
    """Progress of one of several parts of equal length."""
    return lambda done: progress((number + done) / count)
