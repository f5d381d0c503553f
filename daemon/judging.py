"""The judge that the settings name: its identity, its model's digest, and the model itself, opened where it is needed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daemon.config import Config
from daemon.config_judge import JudgeSection
from daemon.probes import ProbeFiles
from patches.errors import JudgeError
from patches.judge import MAX_REPEATS, MIN_VARIETY, MIN_WORDS_FOR_VARIETY, OPENING_CHARS, SORRY
from patches.judge_formats import FORMATS
from patches.refusals import REFUSALS
from state.batches import file_sha256

if TYPE_CHECKING:
    import torch

    from daemon.judge_http import HttpJudge
    from patches.judge_models import Scorer

MODEL_INPUT: Final = "judge.model"
"""Under this key a round records the digest of the judge's model, beside those of the probe files."""
_LOCAL: Final = ("classifier", "generative")
_READ: Final = (".safetensors", ".json", ".txt", ".model", ".jinja")


def rule_identity(settings: JudgeSection) -> str:
    """The word rule, and a digest of all that the rules' labels depend on.

    Openings learnt from v0 are left out: each round looks for them anew, by the same rule.
    """
    about = [REFUSALS, settings.refusals, settings.content_recall, settings.max_new_tokens]
    return f"rule {_digest([*about, OPENING_CHARS, MAX_REPEATS, MIN_VARIETY, MIN_WORDS_FOR_VARIETY, SORRY])}"


def scorer_identity(settings: JudgeSection, model_sha256: str, *, dtype: str = "") -> str:
    """Kind, name and a digest of the model and of how it is asked and read.

    Args:
        model_sha256: of its folder; empty for a server, which may change its model unseen.
        dtype: that a guard is loaded in; the others do not depend on it.
    """
    read: list[Any] = [settings.text, settings.threshold, settings.harmful_labels, settings.refusal_labels]
    if settings.kind != "classifier":
        form = FORMATS[settings.format_name]
        read = [form.name, form.template, form.max_new_tokens]
    if settings.kind == "generative":
        read.append(dtype)
    about = [settings.kind, settings.model if settings.kind == "http" else "", settings.url, model_sha256]
    name = Path(settings.model).name if settings.kind in _LOCAL else settings.model
    return f"{settings.kind} {name} {_digest([*about, *read])}"


def model_digest(settings: JudgeSection, home: Path) -> str:
    """SHA-256 over the files of the judge's model and their names; empty where the judge has no folder.

    Raises:
        JudgeError: the folder is missing or cannot be read.
    """
    if settings.kind not in _LOCAL:
        return ""
    folder = home / settings.model
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix in _READ and path.is_file())
        digests = {name: file_sha256(folder / name) for name in names}
    except OSError as err:
        raise JudgeError(
            f"[judge] model is {folder}, which cannot be read: {err.strerror}; put the judge's model there, or name its folder"
        ) from err
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def noted(files: ProbeFiles, settings: JudgeSection, home: Path) -> ProbeFiles:
    """The inputs of a round, the judge's model among their digests: a round whose judge changes begins anew.

    Raises:
        JudgeError: its folder cannot be read.
    """
    found = model_digest(settings, home)
    return replace(files, digests=files.digests | {MODEL_INPUT: found}) if found else files


def scorer_of(config: Config, home: Path, files: ProbeFiles) -> Scorer | None:
    """The model that the judge asks, as the settings name it; None for the rules alone.

    Args:
        files: as `noted` gives them, with the digest of the judge's model.
    Raises:
        JudgeError: it cannot be used.
    """
    if config.judge.kind == "rule":
        return None
    from patches.model import pick_device

    found = files.digests.get(MODEL_INPUT, "")
    device = pick_device(config.model.device)
    return open_scorer(config.judge, home, model_sha256=found, dtype=config.model.dtype, device=device)


def open_scorer(settings: JudgeSection, home: Path, *, model_sha256: str, dtype: str, device: torch.device) -> Scorer:
    """The model of a judge that is not the rules. A server is reached once, so that a round does not train for nothing.

    Raises:
        JudgeError: it cannot be used.
    """
    identity = scorer_identity(settings, model_sha256, dtype=dtype)
    if settings.kind == "classifier":
        from patches.judge_classifier import Reading, open_classifier

        reading = Reading(
            settings.harmful_labels,
            settings.refusal_labels,
            settings.threshold,
            settings.text == "pair",
            settings.batch_rows,
        )
        return open_classifier(home / settings.model, reading, identity=identity, device=device)
    if settings.kind == "generative":
        from patches.judge_generative import open_guard

        return open_guard(home / settings.model, settings.format, identity=identity, dtype=dtype, device=device)
    server = open_server(settings, home, identity=identity)
    server.check()
    return server


def open_server(settings: JudgeSection, home: Path, *, identity: str = "") -> HttpJudge:
    """The server of kind http, not asked yet. Raises JudgeError."""
    from daemon.judge_http import open_http_judge

    return open_http_judge(settings, home, identity=identity)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()[:12]
