"""Tools that a user would otherwise merge with, in an environment of their own (`make peers`): no part of the product."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.speed.rows import Row, interleaved, seconds
from benchmarks.speed.store import drawn_edits, made_store, remove
from daemon.candidate import write_candidate

ROOT: Final = Path(__file__).resolve().parents[2]
MERGEKIT: Final = ROOT / "var" / "peers" / "bin" / "mergekit-yaml"
_RECIPE: Final = """\
merge_method: dare_linear
base_model: {base}
models:
  - model: {tuned}
    parameters: {{weight: 1.0, density: 0.5}}
dtype: bfloat16
"""


def mergekit(folder: Path, size: str = "1B") -> list[Row]:
    """Merging and writing a version, beside mergekit's dare_linear of base and tuned model."""
    if not MERGEKIT.exists():
        print(f"no row: there is no {MERGEKIT.relative_to(ROOT)}; `make peers` installs it", file=sys.stderr)
        return []
    scratch, merged, recipe = folder / "scratch", folder / "merged", folder / "recipe.yml"
    with made_store(folder, size) as store:
        edits = drawn_edits(store, 0.05)

        def prepare() -> None:
            remove(scratch, merged)
            scratch.mkdir()

        def ours() -> None:
            write_candidate(store, 0, scratch, edits=edits, patch=None)

        prepare()
        ours()
        (config,) = scratch.rglob("config.json")
        config.parent.rename(folder / "tuned")
        recipe.write_text(_RECIPE.format(base=store.model_path(0), tuned=folder / "tuned"))

        def theirs() -> None:
            _run(str(recipe), str(merged), "--no-copy-tokenizer", "--quiet")

        mine, other = interleaved(ours, theirs, prepare=prepare)
    started = seconds(lambda: _run("--help"))
    note = f"{size}, 5 % touched; without mergekit's start ({started:.1f} s)"
    return [Row("merge and write, beside mergekit", mine, "s", "dare_linear", other - started, 0.2, "at most", note)]


def _run(*words: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([str(MERGEKIT), *words], cwd=ROOT, env=environment, capture_output=True, check=True)
