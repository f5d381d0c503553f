"""The part of service.toml that says how patches are derived and merged: [derive], [merge], and the presets of both."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from daemon.config_base import AboveZero, Count, Fraction, Positive, Seconds, Table, Weight


class ObjectiveSection(Table, frozen=True):
    """How one of the two patches is trained."""

    objective: Literal["ascent", "descent", "npo", "simnpo"] = "npo"
    """What is minimised: the safety patch forgets (ascent, npo, simnpo), the over-safety patch learns (descent)."""
    learning_rate: AboveZero | None = None
    """Of AdamW; without it 2e-4 for lora, 0.08 / hidden size for full, 0.24 / hidden size for sparse (6e-5 at 4096)."""
    max_steps: Positive = 60
    """Optimiser steps at most."""
    max_epochs: AboveZero = 12.0
    """Safety patch only: how far it goes at most, so that a few rows are pushed a little only."""
    batch_rows: Positive = 32
    """Rows of the batch in one optimiser step; the retained rows come on top."""
    stop_loss: float | None = None
    """Stop once the smoothed batch loss (nats a response token) is past this: above it to forget, below to learn."""
    open_at_least: Fraction = 0.0
    """Over-safety patch only: share of the batch that the current version must answer with its content, where no standing
    harm probes show what loosening costs."""
    skip_below: Fraction = 0.0
    """Share under which a round does without the patch: of development lookalikes that are refused (over-safety), of rows
    that are answered with their harmful content (safety)."""
    npo_beta: AboveZero | None = None
    """Sharpness of npo and simnpo; without it 0.1 for npo, 2.5 for simnpo."""
    refusal_weight: Weight = 0.0
    """Weight of the model's own refusals as the preferred answers to the batch's prompts (safety patch only)."""
    recovery_weight: Weight = 0.0
    """Weight of the model's own refusals in the middle of the harmful answers, begun and not ended (safety patch only)."""
    max_grad_norm: AboveZero = 1.0
    """Longer gradients are cut to this norm."""


class RetainSection(Table, frozen=True):
    """What must not move while a patch is trained."""

    path: str = "retain.jsonl"
    """Benign (prompt, response) rows, held beside the development part of the utility probes."""
    weight: Weight = 2.0
    """Weight of the KL term that holds retained answers to v0."""
    references_weight: Weight = 1.0
    """Weight of the over-safety probes' references (development part) while the model is loosened."""
    own_answers_weight: Weight = 14.0
    """Weight of the term that holds the loosened model's own answers to the over-safety probes' development part."""
    refusals_weight: Weight = 0.02
    """Weight of the term that holds v0's own refusals of standing harm probes: with the next one, and `recovery_weight` above,
    the dial between refusing harm and refusing what looks like it."""
    batch_refusals_weight: Weight = 0.05
    """Weight of the term that holds v0's own refusals of the batch."""
    wrapped_rows: Count = 600
    """Retained prompts in jailbreaks that the batch's prompts share, at most; v0's right answers to them are held."""
    wrapped_weight: Weight = 5.0
    """Weight of the KL term that holds them."""
    standing_rows: Count = 300
    """Standing harm probes (development part, with a response) that are forgotten along with the batch, at most."""
    replay_rows: Count = 300
    """Rows of earlier batches that are held down along with the new ones."""
    batch_rows: Positive = 16
    """Retained rows in one optimiser step, of each kind."""


class DeriveSection(Table, frozen=True):
    """How the two patches are derived."""

    order: Literal["independent", "sequential"] = "sequential"
    """independent: both from the current model, as published. sequential: safety from the loosened model."""
    backend: Literal["sparse", "full", "lora"] = "sparse"
    """sparse: a few entries, chosen before training. full, lora: everything, cut afterwards to [merge.search] top_fractions."""
    lora_rank: Positive = 16
    """lora: rank of the adapters."""
    max_length: Positive = 512
    """Tokens of prompt and response together; longer responses are cut, longer prompts dropped."""
    max_rows: Positive = 4000
    """Rows of one batch that are trained on; a larger batch is sampled, with the round's seed. In a consolidation rows of all
    batches together, as many of each."""
    sparse_fraction: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """sparse: share of each of the decoder's matrices that a round may change, chosen by SNIP scores before training."""
    safety: ObjectiveSection = ObjectiveSection(
        objective="npo", max_steps=120, refusal_weight=0.3, recovery_weight=1.5, skip_below=0.02
    )
    over_safety: ObjectiveSection = ObjectiveSection(
        objective="descent", max_steps=30, skip_below=0.25, open_at_least=0.1
    )
    retain: RetainSection = RetainSection()
    consolidate_every: Count = 5
    """Batches learnt one after another, after which all of the version's are learnt anew together; 0 = never."""


class SearchSection(Table, frozen=True):
    """The search for (p, a, b, alpha, beta), on the development parts only."""

    trials: Positive = 6
    """Merges that are tried at most."""
    max_s: Seconds = 600.0
    """Nothing more is tried after this long."""
    max_prompts: Positive = 64
    """Development prompts of each axis that one trial answers; of every batch so far 20, when that is more."""
    harm_weight: Weight = 1.0
    """What the harm rate costs in a trial's score."""
    over_refusal_weight: Weight = 1.0
    """What over-refusal costs; refusing and answering wrongly cost half of it each."""
    utility_weight: Weight = 1.0
    """What a right answer to an ordinary question gains."""
    degenerate_weight: Weight = 3.0
    """What gibberish costs."""
    touched_weight: Weight = 0.05
    """What one whole model's worth of touched entries costs; breaks ties towards small versions."""
    min_gain: Weight = 0.03
    """Score that a setting must gain over the first one tried to be taken instead: less is noise of few prompts."""
    retention_rates: tuple[Fraction, ...] = (1.0,)
    """p: chance that an entry of a patch is kept at all."""
    top_fractions: tuple[Fraction, ...] = (1.0,)
    """a and b; the first is the start of the search."""
    alphas: tuple[float, ...] = (0.95,)
    """Factors of the safety patch; the first is the start of the search. A little less than what was trained refuses fewer
    harmless questions that no batch has, keeps more of the abilities, and leaves somewhat more harm."""
    repair_below: Fraction = 0.2
    """Where nothing is loosened and less of the development harm than this is answered, the round is a repair."""
    repair_alphas: tuple[float, ...] = (0.95, 0.5, 0.25)
    """Factors of a repair's safety patch: all of it would end the little harm that is left at the cost of lookalikes. Of those
    that leave the least harm the smallest is taken, or one that gains min_gain over it; where only one is tried, the first."""
    betas: tuple[float, ...] = (1.0, 0.9, 0.0)
    """Factors of the over-safety patch; the first is the start of the search, which only loosens less: what loosening more does
    to questions that no batch has, the development parts do not show."""


class MergeSection(Table, frozen=True):
    """Scores, masks and their search."""

    score: Literal["base", "tuned", "delta", "magnitude"] = "magnitude"
    """Where and what is scored: |w g| at the current model, |w g| at each tuned model, |delta g| there, or |delta|."""
    mask: Literal["difference", "joint"] = "joint"
    """difference: TS \\ TO and TO \\ TS, as published. joint: the top set of the sum of both patches."""
    accumulate: Literal["opposed", "protect", "off"] = "off"
    """What earlier rounds' entries are to later ones: opposed = the other kind of patch leaves them alone, as published;
    protect = both do; off = nothing."""
    rescale: bool = False
    """Divide kept entries by p, as DARE does."""
    score_rows: Positive = 128
    """Rows that scores are summed over."""
    min_set_fraction: Fraction = 0.001
    """A difference set under this share of its matrices fails the round loudly."""
    search: SearchSection = SearchSection()


PRESETS: dict[str, dict[str, Any]] = {
    "alignd": {},
    # As far as the paper pins it down; its hyper-parameters are not public, so the search covers them.
    "safepatching": {
        "derive": {
            "consolidate_every": 0,
            "order": "independent",
            "backend": "full",
            "safety": {
                "objective": "ascent",
                "max_steps": 60,
                "stop_loss": 3.0,
                "refusal_weight": 0.0,
                "recovery_weight": 0.0,
                "skip_below": 0.0,
            },
            "over_safety": {"objective": "descent", "max_steps": 60, "skip_below": 0.0, "open_at_least": 0.0},
            "retain": {
                "weight": 0.0,
                "references_weight": 0.0,
                "own_answers_weight": 0.0,
                "refusals_weight": 0.0,
                "batch_refusals_weight": 0.0,
                "wrapped_rows": 0,
                "wrapped_weight": 0.0,
                "standing_rows": 0,
                "replay_rows": 0,
            },
        },
        "merge": {
            "score": "tuned",
            "mask": "difference",
            "accumulate": "opposed",
            "search": {
                "trials": 24,
                "min_gain": 0.0,
                "retention_rates": [0.5, 0.3, 0.8, 1.0],
                "top_fractions": [0.1, 0.03, 0.3],
                "alphas": [1.0, 0.5, 2.0],
                "repair_below": 0.0,
                "betas": [1.0, 0.5, 2.0, 0.0],
            },
        },
    },
}
