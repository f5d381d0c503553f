"""Build a model of the world from a seed, the demo size byte for byte, or measure one with ``--check``."""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.world.cache import manifest, manifest_path, model_folder, place, recipe, recipe_path
from benchmarks.world.sizes import DEMO, SIZES, Size
from benchmarks.world.world import World

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# Read when torch starts.
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false"}
# The threads and the vector instructions used decide the order of additions, hence the last bits.
PINNED_ORDER = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2",
}  # fmt: skip
# A bfloat16 product is compiled for each shape and kept. Few batches have one shape: 1,024 kept ones were gigabytes.
FEW_KEPT_PRODUCTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}


def main(argv: list[str] | None = None) -> int:
    """Build or check; give the exit code: 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.world.build", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default=DEMO.name, help="of the model (default demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the world and the training (default 0)")
    parser.add_argument(
        "--out",
        type=Path,
        help="model folder to write or to check (default: the committed one for demo and seed 0, else"
        " var/worlds/SIZE-SEED/model)",
    )
    parser.add_argument("--steps-scale", type=float, default=1.0, help="share of the training steps, for tests")
    parser.add_argument("--check", action="store_true", help="measure the model in --out, train nothing")
    options = parser.parse_args(argv)
    size: Size = SIZES[options.size]
    out: Path = options.out or place(size, options.seed)
    _choose_numerics(size)
    if options.check:
        return check_model(out, seed=options.seed)
    return build(out, size=size, seed=options.seed, steps_scale=options.steps_scale)


def build(out: Path, *, size: Size, seed: int, steps_scale: float) -> int:
    """Train a model and put it at ``out``, with the digests of its files and its recipe beside it.

    Gives 1 when a model that was trained in full misses a target; it then gets no recipe, so that nobody takes it for
    ready. One trained in part is not measured.
    """
    world = World.generate(seed)
    model, tokenizer = _train(world, size=size, steps_scale=steps_scale)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        staging = Path(folder) / "model"
        model.save_pretrained(staging, max_shard_size=size.max_shard_size)
        tokenizer.save_pretrained(staging)
        recipe_path(out).unlink(missing_ok=True)
        _put_in_place(staging, out)
    manifest_path(out).write_text(manifest(out), encoding="utf-8")
    exit_code = _measure(model, tokenizer, world) if steps_scale == 1 else 0
    if exit_code == 0:
        recipe_path(out).write_text(recipe(size, seed, steps_scale=steps_scale), encoding="utf-8")
    return exit_code


def check_model(folder: Path, *, seed: int) -> int:
    """Print how the model in ``folder`` meets its targets; give 1 when one is missed."""
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    model = LlamaForCausalLM.from_pretrained(folder)
    return _measure(model, PreTrainedTokenizerFast.from_pretrained(folder), World.generate(seed))


def _measure(model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerFast", world: World) -> int:
    from benchmarks.world.check import check, report

    targets = check(model, tokenizer, world)
    print(report(targets))
    return 0 if all(target.is_met for target in targets) else 1


def _train(world: World, *, size: Size, steps_scale: float) -> "tuple[LlamaForCausalLM, PreTrainedTokenizerFast]":
    from transformers import LlamaForCausalLM

    from benchmarks.world.growth import grow
    from benchmarks.world.lessons import lesson_rows
    from benchmarks.world.model import build_model
    from benchmarks.world.tokens import build_tokenizer
    from benchmarks.world.train import train

    tokenizer = build_tokenizer(world)
    model = build_model(tokenizer, size, world.seed)
    if size.growth_noise is not None:
        grow(
            model,
            LlamaForCausalLM.from_pretrained(model_folder(DEMO, world.seed)),
            noise=size.growth_noise,
            seed=world.seed,
        )
    model.to(_device(size))  # type: ignore[arg-type]  # the wrapper hides whose method it is
    for stage in size.stages:
        rows = lesson_rows(world, stage)
        train(model, tokenizer, rows, size=size, stage=stage.scaled(steps_scale), seed=world.seed)
    return model, tokenizer


def _device(size: Size) -> "torch.device":
    """Give the fastest device; the CPU where the bytes count, because a GPU gives other ones."""
    import torch

    return torch.device("cuda" if not size.is_bitwise and torch.cuda.is_available() else "cpu")


def _choose_numerics(size: Size) -> None:
    """Choose one thread and one instruction set where the bytes count. Must run before torch is imported."""
    if "torch" in sys.modules:
        raise RuntimeError("torch is loaded already: run this as its own process, python -m benchmarks.world.build")
    os.environ.update(ENVIRONMENT | (PINNED_ORDER if size.is_bitwise else FEW_KEPT_PRODUCTS))
    import torch

    torch.use_deterministic_algorithms(size.is_bitwise)


def _put_in_place(staging: Path, out: Path) -> None:
    for path in staging.iterdir():
        path.chmod(0o644)  # safetensors writes files that only their owner may read
    if out.exists():
        shutil.rmtree(out)
    staging.rename(out)


if __name__ == "__main__":
    sys.exit(main())
