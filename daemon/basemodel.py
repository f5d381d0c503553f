"""Whether a model folder can be a base: everything that would fail later, found before anything is copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from state.errors import ModelFormatError
from state.tensors import ModelFolder, check_finite

_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_TEMPLATE_FILES: Final = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")


def check_base(path: Path) -> ModelFolder:
    """The model folder at `path`, checked as a base: format, tokenizer, chat template, finite weights.

    Raises:
        ModelFormatError: names the file or tensor and says what to do.
    """
    folder = ModelFolder.open(path, follow_links=True)
    check_text_side(path)
    check_finite(folder)
    return folder


def check_text_side(path: Path) -> None:
    """Raise `ModelFormatError` unless tokenizer and chat template are there and need no code of the model's own."""
    settings = _tokenizer_settings(path)
    if not any((path / name).is_file() for name in _TOKENIZERS):
        raise ModelFormatError(
            f"{path} has no tokenizer", f"one of {', '.join(_TOKENIZERS)} belongs into the model folder"
        )
    if settings.get("auto_map"):
        raise ModelFormatError(
            f"{path / 'tokenizer_config.json'} wants remote code (auto_map)",
            "use a model whose tokenizer is part of transformers",
        )
    if not settings.get("chat_template") and not any((path / name).exists() for name in _TEMPLATE_FILES):
        raise ModelFormatError(
            f"{path} has no chat template",
            "put the model's chat_template.jinja into it; a model that was not tuned to chat is no use here",
        )


def _tokenizer_settings(path: Path) -> dict[str, Any]:
    file = path / "tokenizer_config.json"
    if not file.exists():
        return {}
    try:
        value = json.loads(file.read_bytes())
    except ValueError as err:
        raise ModelFormatError(f"{file} is no JSON", "copy the model again") from err
    if not isinstance(value, dict):
        raise ModelFormatError(f"{file} is no JSON object", "copy the model again")
    return value
