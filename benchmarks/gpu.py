"""What a GPU makes of a round: `python -m benchmarks.gpu`, under 8 minutes, figures in benchmarks/results/gpu.json.

A Llama of 8 B parameters with random weights in bf16: rates and utilisation of the trainings, the SNIP pass, merges,
answers, peak memory, and a whole round of 500 rows of 512 tokens, for as long as the time lasts: a round that it does not
last for is kept as incomplete, and `--part round --limit-s 900` measures it alone. Without a GPU the same is done with a
tiny model, for tests; nothing is kept then, unless `--out` says where.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from benchmarks.speed import flops, gpu_round
from benchmarks.speed.gpu_plan import TINY, Bench, full_plan
from benchmarks.speed.gpu_round import OutOfTimeError, Steps
from benchmarks.speed.models import SHAPES
from benchmarks.speed.rows import Row, table
from daemon.config import Config
from patches.backends import BackendName, TaskVector
from patches.mask import Masks
from patches.memory import is_out_of_memory
from patches.merge import Before, Patches, Setting, merged, merged_patch
from patches.model import decoder_linears
from patches.snip import scores
from patches.terms import BatchTerm, ObjectiveName
from state.store import Store

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = ROOT / "benchmarks" / "results" / "gpu.json"
WORK: Final = ROOT / "var" / "bench" / "gpu"
UNTIMED_STEPS: Final = 2
BACKENDS: Final[tuple[BackendName, ...]] = ("lora", "sparse", "full")
OBJECTIVES: Final[dict[str, ObjectiveName]] = {"over_safety": "descent", "safety": "npo"}
Found = dict[str, Any]


class _EnoughError(Exception):
    """All steps that were to be timed have been."""


def main(argv: list[str] | None = None) -> int:
    """Measure what was asked for, print it beside the goals, keep it; 0 whatever comes out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--part", action="append", choices=list(PARTS), help="these only; may be repeated")
    parser.add_argument("--limit-s", type=float, default=420.0, help="when to stop (default: %(default)s)")
    parser.add_argument("--shape", choices=["tiny", *SHAPES], help="of the model (default: 8B on a GPU, else tiny)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--out", type=Path, help=f"where figures go (default: {RESULTS.relative_to(ROOT)}, for 8B on a GPU)"
    )
    parser.add_argument("--commit", help="that this code is, where it is not a checkout of it")
    options = parser.parse_args(argv)
    deadline = time.monotonic() + options.limit_s
    device = torch.device(options.device)
    shape = options.shape or ("8B" if device.type == "cuda" else "tiny")
    out: Path | None = options.out or (RESULTS if device.type == "cuda" and shape == "8B" else None)
    bench = Bench.open(TINY if shape == "tiny" else full_plan(Config(), SHAPES[shape]), device)
    kept = _kept(out, _about(bench, options.commit)) if out is not None and out.exists() else {}
    shutil.rmtree(WORK, ignore_errors=True)
    try:
        for name in options.part or PARTS:
            print(f"{name} …", file=sys.stderr, flush=True)
            kept[name] = _attempt(bench, partial(PARTS[name], bench, deadline)) | {
                "about": _about(bench, options.commit)
            }
            if out is not None:  # after each part, so that what ends the command early costs that part only
                out.write_text(json.dumps(kept, indent=1) + "\n")
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    print(json.dumps({name: part | {"about": "…"} for name, part in kept.items()}, indent=1))
    if device.type == "cuda":
        print(table(list(goals(kept))))
    return 0


def _kept(out: Path, about: Found) -> Found:
    """What the file has of the same plan on the same card: other figures cannot be compared, and are dropped."""
    kept: Found = json.loads(out.read_text())
    alike = json.loads(json.dumps({name: about[name] for name in ("card", "plan")}))  # a tuple has become a list
    return {name: part for name, part in kept.items() if {key: part["about"].get(key) for key in alike} == alike}


def _attempt(bench: Bench, work: Callable[[], Found]) -> Found:
    """What some work finds, or why it finds nothing."""
    try:
        return work()
    except OutOfTimeError:
        return {"not_measured": "the time was over"}
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err):
            raise
        reason = f"no memory: {str(err).splitlines()[0]}"
    # out of the handler, where the error still holds what was in memory
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return {"not_measured": reason}


def training(bench: Bench, deadline: float, *, backend: BackendName) -> Found:
    """Rates of both trainings in one back end, without the terms that hold what must stay."""
    return {
        patch: _attempt(bench, partial(_rate, bench, deadline, backend, objective))
        for patch, objective in OBJECTIVES.items()
    }


def _rate(bench: Bench, deadline: float, backend: BackendName, objective: ObjectiveName) -> Found:
    """Tokens a second, utilisation and peak memory of some steps of a training, which is then given up."""
    plan, times, losses = bench.plan, [], []
    steps = Steps(bench, deadline)
    gpu_round.reset_peak(bench)

    def progress(done: float, loss: float) -> None:
        bench.synchronize()
        steps.check()
        times.append(time.perf_counter())
        losses.append(loss)
        if len(times) == UNTIMED_STEPS + plan.timed_steps:
            raise _EnoughError

    rows = bench.batch[: plan.batch_rows]
    start = torch.tensor([row.num_response_tokens * math.log(plan.shape.vocabulary) for row in rows])
    batch, masks = BatchTerm(rows, objective, start, 0.1), _tenth(bench) if backend == "sparse" else None
    with suppress(_EnoughError):
        gpu_round.trained(
            bench, batch, [], UNTIMED_STEPS + plan.timed_steps + 1, masks=masks, progress=progress, backend=backend
        )
    step_s = (times[-1] - times[UNTIMED_STEPS - 1]) / plan.timed_steps
    operations, peak = flops.training_flops(plan.shape, rows, backend) / step_s, _peak(bench)
    return {
        "tokens_per_s": sum(len(row.ids) for row in rows) / step_s,
        "tflops": operations / 1e12,
        "utilisation": operations / peak if peak else None,
        "peak_gib": gpu_round.peak_gib(bench),
        "first_loss": losses[0],
        "steps": plan.timed_steps,
    }


def _tenth(bench: Bench) -> Masks:
    """Entries at random, as many as the service would choose; like its own on the CPU, since they are large."""
    draw = torch.Generator(bench.device).manual_seed(0)
    share = bench.plan.sparse_fraction
    return {
        name: torch.rand(weight.shape, generator=draw, device=bench.device).lt(share).cpu()
        for name, weight in decoder_linears(bench.model).items()
    }


def snip(bench: Bench, deadline: float) -> Found:
    """Tokens a second of the scores at the model itself."""
    rows, steps = bench.batch[: bench.plan.score_rows], Steps(bench, deadline)
    with steps.timed("snip"):
        scores(bench.runner(), rows, {}, kind="base", progress=steps.check, device=bench.device)
    tokens = sum(len(row.ids) for row in rows)
    return {"tokens_per_s": tokens / steps.seconds["snip"], "rows": len(rows), "peak_gib": steps.peak_gib["snip"]}


def evaluation(bench: Bench, deadline: float) -> Found:
    """Prompts and new tokens a second of greedy answers."""
    steps, answer = Steps(bench, deadline), bench.generator().answer
    answer(bench.prompts[:8])
    with steps.timed("answer"):
        answer(bench.prompts, steps.check)
    num, seconds = len(bench.prompts), steps.seconds["answer"]
    return {
        "prompts_per_s": num / seconds,
        "most_new_tokens_per_s": num * bench.plan.new_tokens / seconds,
        "prompts": num,
        "peak_gib": steps.peak_gib["answer"],
    }


def merging(bench: Bench, deadline: float) -> Found:
    """Merges a second, put on and taken off, of patches in a tenth of each matrix, without answers; one written."""
    draw = torch.Generator(bench.device).manual_seed(0)
    masks, steps = _tenth(bench), Steps(bench, deadline)

    def some(scale: float) -> TaskVector:
        return {
            # drawn where that is fast, and kept where the service keeps its patches
            name: scale * torch.randn(mask.shape, generator=draw, device=bench.device).cpu() * mask
            for name, mask in masks.items()
        }

    patches = Patches(some(1e-3), some(2e-3), {}, {}, joint=True, accumulate="off", rescale=False, claims={}, seed=0)
    with steps.timed("support"):
        num_entries = sum(len(support.indices) for support in patches.support.values())
    before: Before = {}
    with steps.timed("merges"):
        for beta in bench.plan.betas:
            with merged(bench.model, merged_patch(patches, Setting(1.0, 1.0, 1.0, 1.0, beta)), before):
                steps.check()
    found: Found = {
        "merges_per_s": len(bench.plan.betas) / steps.seconds["merges"],
        "support_s": steps.seconds["support"],
        "entries": num_entries,
    }
    if (home := _home(bench)) is not None:
        with steps.timed("write"):
            gpu_round.write(home, merged_patch(patches, Setting(1.0, 1.0, 1.0, 1.0, 1.0)))
        found |= {"merge_and_write_s": steps.seconds["write"], "model_gib": 2 * bench.plan.shape.num_entries / 2**30}
    return found


def whole(bench: Bench, deadline: float) -> Found:
    """The round, as far as the time goes."""
    home = _home(bench)
    return gpu_round.whole_round(bench, Steps(bench, deadline), home)


def _home(bench: Bench) -> Path | None:
    """A store whose v0 is the model, made once a command; none where the disk has no room for two models and more."""
    home, base = WORK / "home", WORK / "base"
    if home.exists():
        return home
    WORK.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(WORK).free < 5 * bench.plan.shape.num_entries:
        return None
    bench.model.save_pretrained(base)
    home.mkdir()
    Store.create(home, base, actor="bench", now=datetime.now(UTC).isoformat(timespec="seconds")).close()
    shutil.rmtree(base)
    return home


def goals(kept: Found) -> Iterator[Row]:
    """The lines of the table: a goal each, where what it is about was measured."""
    found = {f"{backend} {patch}": kept.get(backend, {}).get(patch, {}) for backend in BACKENDS for patch in OBJECTIVES}
    rates = {name: part for name, part in found.items() if "tokens_per_s" in part}
    for name, part in rates.items():
        if part["utilisation"] is not None:
            yield Row(f"utilisation, {name}", part["utilisation"], "", "", None, 0.4, "at least")
    scored = kept.get("snip", {}).get("tokens_per_s")
    if scored and (trained := rates.get("sparse over_safety")):
        yield Row("SNIP pass", scored, "tok/s", "training, sparse", trained["tokens_per_s"], 0.8, "at least")
    peaks = [rates.get(f"{name} safety", {}).get("peak_gib") for name in ("sparse", "lora")]
    if all(peaks):
        yield Row("memory of training, sparse", peaks[0], "GiB", "lora", peaks[1], 1.3, "at most")
    played = kept.get("round", {})
    if played.get("is_complete"):
        yield Row("whole round", played["seconds"], "s", "", None, 600, "at most", "500 rows of 512 tokens")


def _peak(bench: Bench) -> float | None:
    return flops.peak(torch.cuda.get_device_name()) if bench.device.type == "cuda" else None


def _about(bench: Bench, commit: str | None) -> Found:
    """Where and from what code the figures are."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit or head.stdout.strip() or "not known",
        "card": torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU",
        "plan": asdict(bench.plan),
        "parameters": bench.plan.shape.num_entries,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


PARTS: Final[dict[str, Callable[[Bench, float], Found]]] = {
    **{backend: partial(training, backend=backend) for backend in BACKENDS},
    "snip": snip,
    "evaluation": evaluation,
    "merging": merging,
    "round": whole,
}


if __name__ == "__main__":
    sys.exit(main())
