"""Which entries a round may change: chosen before anything is trained."""

from __future__ import annotations

from collections.abc import Callable

from daemon.material import Material, references, trainable
from daemon.probes import thin
from daemon.workbench import Workbench
from patches.choice import choose_entries
from patches.mask import Masks


def choose_round_entries(
    bench: Workbench,
    material: Material,
    progress: Callable[[float], None],
    *,
    taken: Masks | None = None,
    first: Masks | None = None,
) -> Masks:
    """Which entries of the decoder both patches may change: those that bear most on the batch and on the lookalikes.

    By scores at the current model, of the harmful answers and of the lookalikes' references; of every matrix the share
    [derive] sparse_fraction that scores highest. Chosen before training, so that the training itself makes do with them
    and nothing has to be cut afterwards.

    Args:
        taken: entries that earlier rounds own and that are not to be chosen.
        first: entries that are chosen before all others.
    """
    settings = bench.config
    rows = trainable(bench, thin(material.batch, settings.merge.score_rows))
    answered = bench.encode(thin(references(material.lookalikes), settings.merge.score_rows))
    return choose_entries(
        bench.runner(),
        [part for part in (rows, answered) if part],
        fraction=settings.derive.sparse_fraction,
        progress=progress,
        taken=taken,
        first=first,
    )
