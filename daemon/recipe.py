"""A version as a mergekit recipe: the base, and the whole change as a task vector that can be weighed anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import yaml

MERGEKIT_FILE: Final = "mergekit.yml"
_DTYPES: Final = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def recipe(version: str, base: str, dtypes: Sequence[str]) -> str:
    """The text of mergekit.yml; the version's model folder lies beside it under its name.

    Args:
        base: folder or hub name of the base.
        dtypes: safetensors names of the weights' types.
    """
    stored = _DTYPES.get(dtypes[0], "float32") if len(dtypes) == 1 else "float32"
    config: dict[str, Any] = {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": [{"model": f"./{version}", "parameters": {"weight": 1.0}}],
        "dtype": "float32",  # rounded once, at the end
        "out_dtype": stored,
    }
    head = f"# mergekit-yaml {MERGEKIT_FILE} OUT, run in this folder; weight 1 gives {version} again\n"
    return head + str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
