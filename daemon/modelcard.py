"""The card of an exported version: front matter that model hubs read, then the same for people. Pure: values in, text out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from daemon import terminal
from daemon.views import View

TEMPLATES: Final = Path(__file__).parent / "templates"
CARD_TEMPLATE: Final = "card.md.jinja"
LIBRARIES: Final = {"hf": "transformers", "peft": "peft", "gguf": "gguf", "mergekit": "mergekit"}
"""Who loads it, by the form of the export."""
USAGE: Final = {
    "hf": 'A complete model folder: `AutoModelForCausalLM.from_pretrained("DIR")`, or any engine that reads such folders.',
    "peft": "An adapter, **not** the version itself; what it loses is told below.\n```python\n"
    'base = AutoModelForCausalLM.from_pretrained("{base}")\nmodel = PeftModel.from_pretrained(base, "DIR")\n```',
    "overlay": "The entries that differ from the base, and a script that puts them in. It needs Python and numpy only, and "
    "compares every file\nwith its SHA-256.\n```\npython apply.py BASE OUT\n```\n`alignd import DIR` takes the version into "
    "another home of the same base.",
    "gguf": "One GGUF file, for llama.cpp and what builds on it.",
    "mergekit": "A recipe, and the version that it names. `weight` says how much of the change is taken.\n```\ncd DIR && "
    "mergekit-yaml mergekit.yml OUT\n```",
}


def card(version: View, form: str, *, error: View | None = None) -> str:
    """The text of README.md.

    Args:
        version: as `provenance.gather` gives it.
        form: hf, peft, overlay, gguf or mergekit.
        error: what an adapter loses.
    """
    base = version["base"]["name"]
    body = _environment().get_template(CARD_TEMPLATE).render(
        version=version,
        name=release_name(version),
        who=_who(version),
        usage=USAGE[form].replace("{base}", base),
        error=error,
    )  # fmt: skip
    return f"---\n{_front_matter(version, form).to_yaml()}\n---\n{body}"


def release_name(version: View) -> str:
    """What the exported version is called: the base's name and the version's."""
    return f"{version['base']['name'].rpartition('/')[2]}-{version['id']}"


def _who(version: View) -> dict[str, str]:
    """Columns of the axes, oldest first, with their titles."""
    lineage = [row["id"] for row in version["lineage"]]
    if len(lineage) == 1:
        return {"this": version["id"]}
    parent = {"parent": f"{lineage[-2]} (parent)"} if len(lineage) > 2 else {}
    return {"v0": "v0 (base)", **parent, "this": version["id"]}


def _front_matter(version: View, form: str) -> ModelCardData:
    results = [_result(axis) for axis in version["axes"] if axis["this"]["value"] is not None]
    relation = {"peft": "adapter", "gguf": "quantized", "mergekit": "merge"}.get(form, "finetune")
    return ModelCardData(
        base_model=version["base"]["name"],
        base_model_relation=relation,
        pipeline_tag="text-generation",
        tags=["alignd", "safety", "alignment", "safepatching"],
        model_name=release_name(version),
        eval_results=results or None,
        library_name=LIBRARIES.get(form),
    )


def _result(axis: Mapping[str, Any]) -> EvalResult:
    share = axis["this"]
    interval = {"low": share["low"], "high": share["high"], "confidence": 0.95, "num_samples": share["num_samples"]}
    return EvalResult(
        task_type="text-generation",
        dataset_type="alignd-gate-probes",
        dataset_name="gate part of the home's probes and batches (not published)",
        metric_type=axis["axis"],
        metric_name=axis["axis"].replace("_", " "),
        metric_value=share["value"],
        metric_args=interval if share["low"] is not None else None,
        verified=False,
    )


def _gate_value(gate: Mapping[str, Any]) -> str:
    is_share = gate["low"] is not None
    return terminal.percent(gate["value"]) if is_share else terminal.number(gate["value"])


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    environment.filters |= {"percent": terminal.percent, "number": terminal.number}
    environment.globals["gate_value"] = _gate_value
    return environment
