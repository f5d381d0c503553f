"""Where the models of the world are: the committed one, or one built when it is first asked for. No torch."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.world.lessons import lesson_rows
from benchmarks.world.sizes import DEMO, Size
from benchmarks.world.world import Row, World
from state.lock import hold

ROOT = Path(__file__).resolve().parents[2]
MODEL_FOLDER = Path(__file__).resolve().parent / "model"
WORLDS = ROOT / "var" / "worlds"
BUILD_LIMIT_S = 4 * 3600  # how long to wait for another process that builds the same model
DIGEST_ROWS = 8192  # of each stage: every item several times


def model_folder(size: Size, seed: int = 0, *, worlds: Path = WORLDS, steps_scale: float = 1.0) -> Path:
    """Give the folder of a model, and build it first when it is missing, incomplete or outdated.

    Built in a process of its own, because the numerics are chosen before torch is imported. Who asks for a model that
    another process is building waits for it.

    Args:
        size: one of ``sizes.SIZES``.
        worlds: folder of the built models; the committed one (``demo``, seed 0) lies elsewhere.
        steps_scale: share of the training steps, for tests.
    Raises:
        subprocess.CalledProcessError: the build failed; what it printed says why.
        LockedError: another process has been building it for ``BUILD_LIMIT_S``.
    """
    folder = place(size, seed, worlds=worlds)
    if folder == MODEL_FOLDER:
        return folder
    if size.growth_noise is not None:
        model_folder(DEMO, seed)  # its recipe names it
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hold(folder.with_name("lock"), f"builds the {size.name} model of seed {seed}", wait_s=BUILD_LIMIT_S):
        if not is_ready(folder, recipe(size, seed, steps_scale=steps_scale)):
            _build(folder, size, seed, steps_scale)
    return folder


def place(size: Size, seed: int, *, worlds: Path = WORLDS) -> Path:
    """Give where a model belongs, whether it is there or not."""
    return MODEL_FOLDER if (size, seed) == (DEMO, 0) else worlds / f"{size.name}-{seed}" / "model"


def is_ready(folder: Path, wanted_recipe: str) -> bool:
    """Tell whether the folder holds exactly the files of its manifest, made by the wanted recipe."""
    try:
        found_recipe = recipe_path(folder).read_text(encoding="utf-8")
        return found_recipe == wanted_recipe and manifest_path(folder).read_text(encoding="utf-8") == manifest(folder)
    except FileNotFoundError:
        return False


def recipe(size: Size, seed: int, *, steps_scale: float = 1.0) -> str:
    """Give what a model is made from, as JSON: figures of its size, seed, and a digest of what it is taught.

    A grown one names the demo model that it starts from too, by the digest of its manifest; null while that one is not there.
    The training code is not in it: whoever changes that and wants it to count deletes the built models.
    """
    world = World.generate(seed)
    made_from: dict[str, Any] = {
        "size": asdict(size),
        "seed": seed,
        "steps_scale": steps_scale,
        "lessons": [_digest(lesson_rows(world, stage)) for stage in size.stages],
    }
    if size.growth_noise is not None:
        made_from["grown_from"] = _model_digest(place(DEMO, seed))
    return json.dumps(made_from, indent=2) + "\n"


def manifest(folder: Path) -> str:
    """Give the digests of a folder's files in the format of ``sha256sum``, sorted by name."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {folder.name}/{path.name}\n"
        for path in sorted(folder.iterdir())
    ]
    return "".join(lines)


def manifest_path(folder: Path) -> Path:
    """Give where a model folder's manifest is: beside it, so that the folder stays an ordinary model."""
    return folder.with_name(f"{folder.name}.sha256")


def recipe_path(folder: Path) -> Path:
    """Give where a model folder's recipe is: beside it too."""
    return folder.with_name(f"{folder.name}.recipe.json")


def _model_digest(folder: Path) -> str | None:
    return hashlib.sha256(manifest(folder).encode()).hexdigest() if folder.is_dir() else None


def _digest(rows: Iterator[Row]) -> str:
    lines = [json.dumps(asdict(row)) + "\n" for row in islice(rows, DIGEST_ROWS)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _build(folder: Path, size: Size, seed: int, steps_scale: float) -> None:
    command = [sys.executable, "-m", "benchmarks.world.build", "--size", size.name, "--seed", str(seed)]
    command += ["--out", str(folder.resolve()), "--steps-scale", str(steps_scale)]
    environment = {**os.environ, "PYTHONSAFEPATH": ""}  # or the package would not be found in the current folder
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
