"""The bill of materials of an exported version, as CycloneDX 1.6 (ML-BOM). Pure: values in, values out.

By hand: cyclonedx-python-lib has no model cards yet. A test holds it against the published schema.
"""

from __future__ import annotations

import uuid
from typing import Any, Final

from daemon.modelcard import release_name
from daemon.views import View

SPECIFICATION: Final = "1.6"
_NAMESPACE: Final = uuid.UUID("7f1f4a5e-53a6-5d2e-9f3c-8f6b8f0e8a11")
_VERSION, _BASE = "version", "base"


def bill(version: View, form: str, files: dict[str, str]) -> dict[str, Any]:
    """The document; equal arguments give equal documents.

    Args:
        version: as `provenance.gather` gives it.
        form: hf, peft, overlay, gguf or mergekit.
        files: SHA-256 of each exported file, by its name in the folder.
    """
    batches = [row for row in version["lineage"] if row["batch"]]
    parts = [_base(version), *map(_batch, batches), *(_file(name, digest) for name, digest in sorted(files.items()))]
    serial = uuid.uuid5(_NAMESPACE, f"{version['lineage'][-1]['record']} {form} {sorted(files.items())}")
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPECIFICATION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "timestamp": version["created"],
            "tools": {"components": [{"type": "application", "name": "alignd", "version": version["alignd"]}]},
            "component": _subject(version, form),
        },
        "components": parts,
        "dependencies": [
            {"ref": _VERSION, "dependsOn": [_BASE, *(_batch_ref(row) for row in batches)]},
            {"ref": _BASE},
        ],
    }


def _subject(version: View, form: str) -> dict[str, Any]:
    facts = {"form": form, "state": version["state"], "num_parameters": version["num_parameters"]}
    facts["record.sha256"] = version["lineage"][-1]["record"]
    facts |= {f"method.{key}": value for key, value in version["method"].items() if value is not None}
    facts |= {f"seed.{key}": value for key, value in version["seeds"].items()}
    facts |= {f"gate.{gate['name']}": gate["verdict"] for gate in version["gates"]}
    return {
        "type": "machine-learning-model",
        "bom-ref": _VERSION,
        "name": release_name(version),
        "version": version["id"],
        "description": f"{version['base']['name']}, kept aligned through {len(version['lineage']) - 1} version(s)",
        "pedigree": {"ancestors": [_base(version, ref="ancestor")], "notes": _lineage_text(version)},
        "modelCard": _model_card(version),
        "properties": [{"name": f"alignd:{key}", "value": str(value)} for key, value in facts.items()],
    }


def _lineage_text(version: View) -> str:
    return "; ".join(
        f"{row['id']} by {row['came_by']} {(row['batch'] or '')[:12]}".strip() for row in version["lineage"]
    )


def _model_card(version: View) -> dict[str, Any]:
    batches = [row for row in version["lineage"] if row["batch"]]
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "text-generation",
            "architectureFamily": version["model_type"] or "unknown",
            "modelArchitecture": version["architecture"] or "unknown",
            "datasets": [{"ref": _batch_ref(row)} for row in batches],
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [_metric(axis) for axis in version["axes"] if axis["this"]["value"] is not None]
        },
        "considerations": {
            "users": ["those who serve the base, in its place"],
            "useCases": [
                "text generation that refuses what the batches asked for, and answers what only looks like it"
            ],
            "technicalLimitations": [
                "harm is measured on the categories of the batches and of the standing probes only",
                "figures hold for the prompts, the chat template and the greedy decoding of the home that measured them",
                "refusals can be trained away, and jailbreaks that no batch contained may work",
            ],
        },
    }


def _metric(axis: View) -> dict[str, Any]:
    share = axis["this"]
    found = {
        "type": axis["axis"],
        "value": str(share["value"]),
        "slice": f"{share['num_samples'] or 'unknown'} samples",
    }
    if share["low"] is None:
        return found
    return found | {"confidenceInterval": {"lowerBound": str(share["low"]), "upperBound": str(share["high"])}}


def _base(version: View, ref: str = _BASE) -> dict[str, Any]:
    files = version["base"]["files"]
    return {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": version["base"]["name"],
        "properties": [{"name": f"alignd:sha256:{name}", "value": digest} for name, digest in sorted(files.items())],
    }


def _batch_ref(row: View) -> str:
    return f"batch:{row['batch']}:{row['id']}"


def _batch(row: View) -> dict[str, Any]:
    return {
        "type": "data",
        "bom-ref": _batch_ref(row),
        "name": f"batch {row['batch'][:12]}",
        "description": f"harmful prompts with the answers they drew; made {row['id']}; not part of the release",
        "hashes": [{"alg": "SHA-256", "content": row["batch"]}],
        "data": [{"type": "dataset", "name": f"batch {row['batch'][:12]}", "classification": "restricted"}],
    }


def _file(name: str, digest: str) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"file:{name}",
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }
