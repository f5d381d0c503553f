"""What others would do with the same batch: plain unlearning, generic merges, supervised fine-tuning on refusals.

All get the rows that ours gets (batch and standing harm probes to forget, retained rows, lookalikes where the method has
a place for them), the same optimiser, and in each training run as many steps as both of ours together. Task arithmetic
tries 8 merges, TIES and DARE 16, ours 3 at most. The two that learn from every row that ours learns from are trained at three
rates, the paper's method at three rates and stop losses (`methods.PAPER_TRIALS`); the best on the development parts counts.
Sources: gradient difference and NPO with KL, arXiv 2404.05868; SimNPO, 2410.07163; task arithmetic, 2212.04089;
TIES, 2306.01708; DARE, 2311.03099 (the last three as in peft).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from peft.utils.merge_utils import dare_linear, task_arithmetic, ties

from benchmarks.method.axes import measure_axes
from benchmarks.method.play import Played, Task
from daemon.config import Config
from daemon.material import Material, own_refusals, record_teachers, references, wrapped_rows
from daemon.measuring import ProbeSets, development_sets, measure_sets
from daemon.measuring import axes as search_axes
from daemon.probes import development_part
from daemon.searching import weights_of
from daemon.workbench import Pair, Workbench, batch_pairs, retain_pairs
from patches.backends import TaskVector, usual_learning_rate
from patches.derive import FORGETTING, Recipe, derive
from patches.merge import shifted
from patches.model import count_entries, decoder_linears
from patches.terms import AnswerTerm, BatchTerm, ObjectiveName, Term, row_nll
from policies.search import score

STEPS, BATCH_ROWS = 120, 32
ASCENT_STOP = 3.0
SIMNPO_BETA = 4.5  # its authors' default
MERGE_WEIGHTS = ((1.0, 1.0), (1.0, 0.5), (0.5, 1.0), (1.0, 2.0), (2.0, 1.0), (0.7, 0.7), (1.0, 0.3), (1.5, 1.5))
DENSITIES = (0.3, 0.6)
PACES = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Shop:
    """A model with the rows that every baseline may use."""

    task: Task
    bench: Workbench

    @classmethod
    def open(cls, task: Task, config: Config) -> Shop:
        harmful = [row.response for row in task.batch.rows]
        bench = Workbench.open(config, task.current, task.ground.base, task.ground.files(), harmful=harmful)
        bench.learn_judge()
        return cls(task, bench)

    @cached_property
    def material(self) -> Material:
        files, batch = self.bench.files, batch_pairs(self.task.batch.train())
        retain = retain_pairs(files)
        wrapped = wrapped_rows(self.bench, batch, retain, seed=self.task.seed)
        return Material(
            batch=batch,
            replay=(),
            standing=references(development_part(files.harm)),
            retain=[*retain, *wrapped],
            wrapped=(),
            lookalikes=development_part(files.over_safety),
            refusals=own_refusals(self.bench, batch),
        )

    @property
    def harmful(self) -> list[Pair]:
        """What is to be forgotten."""
        return [*self.material.batch, *self.material.standing]

    @cached_property
    def kl(self) -> Term:
        """KL to v0 on rows that are to stay."""
        return replace(record_teachers(self.bench, self.material).retain, weight=1.0)

    def harm_term(self, objective: ObjectiveName, beta: float = 0.1) -> BatchTerm:
        """The batch itself, to forget or to learn."""
        rows = self.bench.encode(self.harmful)
        return BatchTerm(rows, objective, row_nll(self.bench.runner(), rows), beta)

    def refusals(self) -> AnswerTerm:
        """The batch's prompts, refused in the model's own words in turn."""
        texts = self.material.refusals.texts()
        pairs = [(messages, texts[i % len(texts)]) for i, (messages, _) in enumerate(self.harmful)]
        return AnswerTerm(self.bench.encode(pairs), 1.0)

    def ordinary(self, *, with_lookalikes: bool) -> AnswerTerm:
        """Ordinary rows with their answers, and the lookalikes' references."""
        pairs = list(self.material.retain)
        if with_lookalikes:
            pairs += [(row.messages, row.response) for row in self.material.lookalikes if row.response]
        return AnswerTerm(self.bench.encode(pairs), 1.0, name="benign")

    def train(self, first: BatchTerm | AnswerTerm, others: Sequence[Term] = (), *, pace: float = 1.0) -> TaskVector:
        """The task vector of one training run, at ``pace`` times the usual learning rate."""
        batch = first if isinstance(first, BatchTerm) else _as_descent(first)
        config = self.bench.config.derive
        forgets = batch.objective in FORGETTING
        recipe = Recipe(
            objective=batch.objective,
            learning_rate=pace * usual_learning_rate("full", self.bench.model.config.hidden_size),
            max_steps=STEPS,
            batch_rows=BATCH_ROWS,
            hold_rows=BATCH_ROWS,
            stop_loss=ASCENT_STOP if batch.objective == "ascent" and forgets else None,
            max_grad_norm=config.safety.max_grad_norm,
            backend="full",
            lora_rank=config.lora_rank,
            seed=self.task.seed,
        )
        return derive(self.bench.runner(), batch, others, recipe=recipe, progress=_quiet).task_vector

    def worth(self, vector: TaskVector) -> float:
        """How good a task vector is on the development parts, by our own search's score."""
        with shifted(self.bench.model, vector):
            measured = measure_sets(self.bench, self._sets, with_loss=False)
        return score(search_axes(measured, 0.0), weights_of(self.bench.config))

    @cached_property
    def _sets(self) -> ProbeSets:
        return development_sets({"new": self.task.batch.development()}, self.bench.files, self.bench.config)

    def at_best_pace(self, first: BatchTerm | AnswerTerm, others: Sequence[Term]) -> TaskVector:
        """The best of the same training at several rates."""
        return max((self.train(first, others, pace=pace) for pace in PACES), key=self.worth)


Made = Callable[[Shop], TaskVector]


def untouched(_: Shop) -> TaskVector:
    """The model as it is."""
    return {}


def ascent(shop: Shop) -> TaskVector:
    """Gradient ascent alone, stopped at a loss."""
    return shop.train(shop.harm_term("ascent"))


def npo(shop: Shop) -> TaskVector:
    """Negative preference optimisation alone."""
    return shop.train(shop.harm_term("npo"))


def simnpo(shop: Shop) -> TaskVector:
    """The same without a reference model."""
    return shop.train(shop.harm_term("simnpo", SIMNPO_BETA))


def gradient_difference(shop: Shop) -> TaskVector:
    """Ascent, with KL on ordinary rows."""
    return shop.train(shop.harm_term("ascent"), [shop.kl])


def npo_kl(shop: Shop) -> TaskVector:
    """NPO, with KL on ordinary rows."""
    return shop.train(shop.harm_term("npo"), [shop.kl])


def refusals_only(shop: Shop) -> TaskVector:
    """Supervised fine-tuning on refusals of the batch."""
    return shop.train(shop.refusals())


def refusals_and_benign(shop: Shop) -> TaskVector:
    """The same among ordinary rows."""
    return shop.train(shop.refusals(), [shop.ordinary(with_lookalikes=False)])


def refusals_and_lookalikes(shop: Shop) -> TaskVector:
    """The same with the references of the development lookalikes as well: every row that ours may learn from."""
    return shop.at_best_pace(shop.refusals(), [shop.ordinary(with_lookalikes=True)])


def npo_and_all_rows(shop: Shop) -> TaskVector:
    """NPO with refusals preferred, KL on ordinary rows and the lookalikes' references: one training instead of our two."""
    others = [shop.kl, shop.ordinary(with_lookalikes=True), replace(shop.refusals(), weight=0.3)]
    return shop.at_best_pace(shop.harm_term("npo"), others)


def by_task_arithmetic(shop: Shop) -> TaskVector:
    """Weighted sum of a safety and an over-safety patch, each with KL."""
    return _best_merge(shop, lambda pair, weights: task_arithmetic(pair, weights))


def by_ties(shop: Shop) -> TaskVector:
    """TIES of the same patches: trim, elect signs, merge."""
    return _best_merge(shop, *(_at_density(ties, density) for density in DENSITIES))


def by_dare(shop: Shop) -> TaskVector:
    """DARE of the same patches: drop at random, rescale, add."""
    return _best_merge(shop, *(_at_density(dare_linear, density) for density in DENSITIES))


BASELINES: dict[str, Made] = {
    "untouched": untouched,
    "ascent": ascent,
    "npo": npo,
    "simnpo": simnpo,
    "gradient difference + KL": gradient_difference,
    "npo + KL": npo_kl,
    "task arithmetic": by_task_arithmetic,
    "TIES": by_ties,
    "DARE": by_dare,
    "SFT on refusals": refusals_only,
    "SFT on refusals, benign": refusals_and_benign,
    "SFT on all our rows": refusals_and_lookalikes,
    "NPO on all our rows": npo_and_all_rows,
}


def play_baseline(task: Task, config: Config, name: str) -> Played:
    """One baseline, trained and measured."""
    began = time.monotonic()
    shop = Shop.open(task, config)
    torch.manual_seed(task.seed)  # DARE of peft draws from the global generator
    vector = BASELINES[name](shop)
    train_s = time.monotonic() - began
    model = shop.bench.model
    with shifted(model, vector):
        axes = measure_axes(model, shop.bench.tokenizer, task.ground.world)
    changed = sum(int((delta != 0).sum()) for delta in vector.values())
    return Played(axes, changed / count_entries(decoder_linears(model).values()), train_s, {})


Merge = Callable[[list[torch.Tensor], torch.Tensor], torch.Tensor]


def _best_merge(shop: Shop, *ways: Merge) -> TaskVector:
    """The merge of both patches that scores best on the development parts, by our own search's score."""
    safety = shop.train(shop.harm_term("npo"), [shop.kl])
    over_safety = shop.train(shop.harm_term("descent"), [shop.kl])
    return max(_merges(safety, over_safety, ways), key=shop.worth)


def _merges(safety: TaskVector, over_safety: TaskVector, ways: Iterable[Merge]) -> Iterator[TaskVector]:
    for way in ways:
        for pair in MERGE_WEIGHTS:
            weights = torch.tensor(pair)
            yield {name: way([safety[name], over_safety[name]], weights) for name in safety}


def _at_density(merge: Callable[..., torch.Tensor], density: float) -> Merge:
    return lambda pair, weights: merge(pair, weights, density)


def _as_descent(term: AnswerTerm) -> BatchTerm:
    """Given answers, to be learnt."""
    return BatchTerm(term.rows, "descent", torch.zeros(len(term.rows)), 0.1, name=term.name)


def _quiet(*_: float) -> None:
    """Nobody watches."""
