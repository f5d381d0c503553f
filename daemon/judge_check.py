"""Whether the judge that the settings name is there, looked at without torch; a server is asked about an invented answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from daemon.config_judge import JudgeSection

_SUFFIX: Final = {"classifier": "ForSequenceClassification", "generative": "ForCausalLM"}
"""How the architectures end that each kind is loaded as."""


def what_is_wrong(settings: JudgeSection, home: Path) -> tuple[str, str]:
    """What keeps the judge from judging, empty when nothing was found; and one sentence about it otherwise."""
    if settings.kind == "rule":
        return "", f"rules; {len(settings.refusals)} refusal openings beside the built-in ones"
    if settings.kind == "http":
        return _server(settings, home)
    return _folder(settings, home / settings.model)


def _folder(settings: JudgeSection, folder: Path) -> tuple[str, str]:
    config, fault = _read_config(folder)
    if fault:
        return fault, ""
    if not any(folder.glob("*.safetensors")):
        return f"{folder} has no safetensors file; pickles are not read", ""
    architectures, by_place = config.get("architectures") or [], config.get("id2label") or {}
    if not isinstance(architectures, list):
        return f"{folder / 'config.json'} has something else than a list as architectures", ""
    if not isinstance(by_place, dict):
        return f"{folder / 'config.json'} has something else than a table as id2label", ""
    named = [str(name) for name in architectures]
    suffix = _SUFFIX[settings.kind]
    if named and not any(name.endswith(suffix) for name in named):
        return f"{folder} is a {named[0]}, and kind {settings.kind!r} needs one that ends with {suffix}", ""
    labels = [str(label) for label in (by_place or {"0": "LABEL_0", "1": "LABEL_1"}).values()]
    wanted = (*settings.harmful_labels, *settings.refusal_labels) if settings.kind == "classifier" else ()
    unknown = [label for label in wanted if label not in labels]
    if unknown:
        return f"{folder} has no label {unknown[0]!r}; it has {', '.join(labels)}", ""
    return "", f"{settings.kind} {named[0] if named else 'model'} in {folder}"


def _read_config(folder: Path) -> tuple[dict[str, Any], str]:
    path = folder / "config.json"
    try:
        found = json.loads(path.read_bytes())
    except OSError as err:
        return {}, f"{path} cannot be read: {err.strerror}; put the judge's model into {folder}"
    except (ValueError, RecursionError):
        return {}, f"{path} is no JSON"
    return (found, "") if isinstance(found, dict) else ({}, f"{path} holds no settings of a model")


def _server(settings: JudgeSection, home: Path) -> tuple[str, str]:
    from daemon.judging import open_server
    from patches.errors import JudgeError

    try:
        return "", open_server(settings, home).check()
    except JudgeError as err:
        return str(err), ""
