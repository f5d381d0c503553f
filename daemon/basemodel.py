"""Whether a model folder can be a base: everything that would fail later, found before anything is copied."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daemon.config_checks import ANSWER_ROOM
from state.errors import ModelFormatError
from state.tensors import ModelFolder, check_finite, read_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MAX_TOKENS: Final = 1 << 24
_ANY_TEXT: Final = "a é 三 🙂\n"
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
    context_tokens(path)
    settings = _tokenizer_settings(path)
    if not any((path / name).is_file() for name in _TOKENIZERS):
        raise ModelFormatError(
            f"{path} has no tokenizer", f"one of {', '.join(_TOKENIZERS)} belongs into the model folder"
        )
    if (path / "tokenizer.json").is_file():
        _check_ids(path / "tokenizer.json")
        read_tokenizer(path / "tokenizer.json")
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
    return read_object(file) if file.exists() else {}


def context_tokens(path: Path) -> int | None:
    """Tokens that the model in a folder can look at; None where its config.json does not say.

    Raises:
        ModelFormatError: config.json cannot be read, or says too few.
    """
    context = read_object(path / "config.json").get("max_position_embeddings")
    if type(context) is not int:
        return None
    if context <= ANSWER_ROOM:
        raise ModelFormatError(
            f"{path / 'config.json'}: max_position_embeddings is {context}, which leaves no room for a prompt",
            "copy the model again",
        )
    return context


def _check_ids(file: Path) -> None:
    """Refuse ids at which the tokenizer's library would ask for all memory, and end the process when it got none."""
    model = read_object(file).get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = vocabulary.values() if isinstance(vocabulary, dict) else ()
    if any(type(number) is int and number >= _MAX_TOKENS for number in ids):
        raise ModelFormatError(f"{file}: a token has an id of {_MAX_TOKENS} or more", "copy the model again")


def read_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json.

    Raises:
        ModelFormatError: it is none, or cannot encode a text; names the file.
    """
    from tokenizers import Tokenizer  # not for every command that looks at a base

    try:
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.encode(_ANY_TEXT)
        return tokenizer
    except Exception as err:
        raise ModelFormatError(f"{file} is no tokenizer: {err}", "copy the model again") from err
