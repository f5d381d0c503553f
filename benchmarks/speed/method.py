"""The steps of a round on the demo model, beside the usual way to do each; one thread for both sides."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from benchmarks.speed.models import SHAPES, make
from benchmarks.speed.rows import Row, interleaved
from benchmarks.world.world import World
from patches import snip
from patches.backends import TaskVector
from patches.chat import Encoded, encode_row, pad, pad_id
from patches.derive import Recipe, derive
from patches.generate import Generator
from patches.merge import Before, Patches, Setting, merged, merged_patch
from patches.model import decoder_linears, load_model, load_tokenizer
from patches.terms import BatchTerm, Runner

MODEL: Final = Path(__file__).resolve().parent.parent / "world" / "model"
STEPS: Final = 60
BATCH_ROWS: Final = 16
MAX_NEW_TOKENS: Final = 48
Messages = tuple[dict[str, str], ...]


def bench() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[Encoded], list[Messages]]:
    torch.set_num_threads(1)
    model = load_model(MODEL, dtype="auto", device=torch.device("cpu"))
    tokenizer = load_tokenizer(MODEL)
    world = World.generate(0)
    found = world.harmful(world.categories[:2], "batch", 256, seed=0)
    prompts: list[Messages] = [({"role": "user", "content": row.prompt},) for row in found]
    coded = [
        encode_row(tokenizer, prompt, row.response, max_length=512) for prompt, row in zip(prompts, found, strict=True)
    ]
    return model, tokenizer, [row for row in coded if row is not None], prompts


def training(folder: Path) -> list[Row]:
    """Rows a second of a descent patch, back end sparse and full, beside Hugging Face's Trainer."""
    model, tokenizer, rows, _ = bench()
    runner = Runner(model, pad_id(tokenizer), 8192)
    tokens = sum(len(row.ids) for row in rows) / len(rows) * BATCH_ROWS * STEPS
    masks = {
        name: torch.rand(w.shape, generator=torch.Generator().manual_seed(1)) < 0.1
        for name, w in decoder_linears(model).items()
    }
    found = []
    for backend in ("sparse", "full"):
        recipe = Recipe(
            objective="descent", learning_rate=1e-4, max_steps=STEPS, batch_rows=BATCH_ROWS, hold_rows=0, stop_loss=0.0,
            max_grad_norm=1.0, backend=backend, lora_rank=8, seed=0,
        )  # fmt: skip

        def ours(recipe: Recipe = recipe) -> None:
            batch = BatchTerm(rows, "descent", torch.zeros(len(rows)), 0.1)
            chosen = masks if recipe.backend == "sparse" else None
            derive(runner, batch, [], recipe=recipe, progress=lambda done, loss: None, masks=chosen)

        mine, peer = interleaved(ours, lambda: train_by_trainer(model, rows, tokenizer, folder))
        name = f"training a patch, back end {backend}"
        against = "HF Trainer, AdamW, the same rows, steps and length groups, float32"
        found.append(
            Row(
                name,
                tokens / mine,
                "tok/s",
                against,
                tokens / peer,
                1.3,
                "at least",
                f"{STEPS} steps of {BATCH_ROWS} rows",
            )
        )
    return found


def train_by_trainer(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    num_steps: int = STEPS,
    batch_rows: int = BATCH_ROWS,
) -> PreTrainedModel:
    """A copy of the model, its decoder's matrices trained on the rows as Hugging Face's Trainer does it."""
    tuned = copy.deepcopy(model)
    tuned.requires_grad_(False)
    for weight in decoder_linears(tuned).values():
        weight.requires_grad_(True)

    def collate(picked: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        padded = pad([row["row"] for row in picked], pad_id=pad_id(tokenizer), device=torch.device("cpu"))
        return {"input_ids": padded.ids, "attention_mask": padded.attention, "labels": padded.labels}

    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=num_steps, per_device_train_batch_size=batch_rows, learning_rate=1e-4,
        weight_decay=0.0, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, seed=0,
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    data: Any = [{"row": row} for row in rows]
    Trainer(model=tuned, args=arguments, train_dataset=data, data_collator=collate).train()
    return tuned


def scoring(folder: Path) -> list[Row]:
    """SNIP over 256 rows, beside one example to a backward pass as released scripts do."""
    model, tokenizer, rows, _ = bench()
    runner, weights = Runner(model, pad_id(tokenizer), 8192), decoder_linears(model)

    def ignore(done: float) -> None:
        pass

    many = snip._many_rows_at_once(runner, rows, weights, ignore)
    one = snip._row_by_row(runner, rows, weights, ignore)
    assert many is not None
    worst = max(float(((many[n] - one[n]).abs() / one[n].abs().clamp_min(1e-6)).max()) for n in one)
    mine, peer = interleaved(
        lambda: snip._many_rows_at_once(runner, rows, weights, ignore),
        lambda: snip._row_by_row(runner, rows, weights, ignore),
    )
    num = len(rows)
    note = f"largest relative difference of a score {worst:.1g}"
    return [Row("SNIP pass", num / mine, "rows/s", "one example a backward pass", num / peer, 3.0, "at least", note)]


def evaluation(folder: Path) -> list[Row]:
    """Greedy answers to what a measurement asks, all kinds in one call, beside `generate` with padded batches of 64."""
    model, tokenizer, _, batch = bench()
    prompts = [*probe_prompts(World.generate(0)), *batch[:64]]
    generator = Generator(model, tokenizer, MAX_NEW_TOKENS)
    same = sum(
        a.text == b for a, b in zip(generator.answer(prompts), by_generate(model, tokenizer, prompts), strict=True)
    )
    mine, peer = interleaved(lambda: generator.answer(prompts), lambda: by_generate(model, tokenizer, prompts))
    num, note = len(prompts), f"{same} of {len(prompts)} answers are the same text"
    return [
        Row("evaluation", num / mine, "prompts/s", "generate, padded batches of 64", num / peer, 2.0, "at least", note)
    ]


def probe_prompts(world: World) -> list[Messages]:
    """Standing harm probes, lookalikes and ordinary questions, kind by kind."""
    harm = world.harmful(world.categories, "probe", 8 * len(world.categories))
    return [
        ({"role": "user", "content": row.prompt},)
        for row in (*harm, *world.lookalikes("probe"), *world.utility("probe"))
    ]


def by_generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages]) -> list[str]:
    """Answers by transformers' own `generate`, in the prompts' order."""
    tokenizer.padding_side = "left"
    texts: list[str] = []
    for start in range(0, len(prompts), 64):
        batch: Any = tokenizer.apply_chat_template(
            [list(prompt) for prompt in prompts[start : start + 64]], add_generation_prompt=True, padding=True,
            return_tensors="pt", return_dict=True,
        )  # fmt: skip
        with torch.no_grad():
            made = model.generate(  # type: ignore[operator]
                **batch, do_sample=False, max_new_tokens=MAX_NEW_TOKENS, pad_token_id=pad_id(tokenizer)
            )
        texts += tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def search(folder: Path) -> list[Row]:
    """Merges put on and taken off a model, beside each on a fresh copy; without the evaluation, which both need."""
    torch.set_num_threads(1)
    model = load_model(make(SHAPES["0.3B"], folder / "model"), dtype="auto", device=torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    chosen = {name: torch.rand(weight.shape, generator=draw) < 0.1 for name, weight in decoder_linears(model).items()}

    def some() -> TaskVector:
        return {name: 0.01 * torch.randn(mask.shape, generator=draw) * mask for name, mask in chosen.items()}

    patches = Patches(some(), some(), {}, {}, joint=True, accumulate="off", rescale=False, claims={}, seed=0)
    settings = [Setting(1.0, 1.0, 1.0, alpha, beta) for alpha in (0.8, 1.0) for beta in (0.0, 0.5, 1.0)]

    def ours() -> None:
        before: Before = {}
        for setting in settings:
            with merged(model, merged_patch(patches, setting), before):
                pass

    def copies() -> None:
        for setting in settings:
            fresh = copy.deepcopy(model)
            with torch.no_grad():
                for name, weight in decoder_linears(fresh).items():
                    weight += setting.alpha * patches.safety[name] + setting.beta * patches.over_safety[name]

    mine, peer = interleaved(ours, copies)
    num = len(settings)
    note = "0.3B, a tenth of each matrix; the measuring that follows each merge is in neither"
    return [
        Row(
            "coefficient search",
            num / mine,
            "merges/s",
            "a fresh copy of the model each",
            num / peer,
            3.0,
            "at least",
            note,
        )
    ]
