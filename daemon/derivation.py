"""How either patch of a round is trained, as the settings say; the training itself is patches/derive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from daemon.config_method import ObjectiveSection
from daemon.workbench import Workbench
from patches.backends import usual_learning_rate
from patches.derive import Derivation, DeriveReport, Recipe, derive
from patches.mask import Masks
from patches.model import decoder_linears
from patches.objectives import USUAL_BETA
from patches.terms import BatchTerm, Term

Progress = Callable[[float, float], None]


def nothing(bench: Workbench, reason: str) -> Derivation:
    """A patch that changes nothing."""
    zero = {name: torch.zeros(weight.shape) for name, weight in decoder_linears(bench.model).items()}
    return Derivation(zero, DeriveReport(0, reason, 0.0, 0.0, (), {}))


def beta_of(settings: ObjectiveSection) -> float:
    """The sharpness that is set, or the usual one; objectives that have none do not look at it."""
    return settings.npo_beta or USUAL_BETA.get(settings.objective, 1.0)


def derive_patch(
    bench: Workbench,
    batch: BatchTerm,
    terms: Sequence[Term],
    *,
    settings: ObjectiveSection,
    seed: int,
    progress: Progress,
    masks: Masks | None = None,
    pace: float = 1.0,
) -> Derivation:
    """Train as the settings say, at a share ``pace`` of the learning rate."""
    derive_settings = bench.config.derive
    backend = derive_settings.backend
    rate = settings.learning_rate or usual_learning_rate(backend, bench.model.config.hidden_size)
    recipe = Recipe(
        objective=settings.objective,
        learning_rate=pace * rate,
        max_steps=settings.max_steps,
        batch_rows=settings.batch_rows,
        hold_rows=derive_settings.retain.batch_rows,
        stop_loss=settings.stop_loss,
        max_grad_norm=settings.max_grad_norm,
        backend=backend,
        lora_rank=derive_settings.lora_rank,
        seed=seed,
    )
    return derive(bench.runner(), batch, terms, recipe=recipe, progress=progress, masks=masks)
