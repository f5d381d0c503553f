"""A version as GGUF, by llama.cpp's own converter, which follows every change of that format."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

CONVERTER_NAMES: Final = ("convert_hf_to_gguf.py", "convert-hf-to-gguf.py", "convert-hf-to-gguf")
_MAX_TAIL_LINES: Final = 2
_INSTALL: Final = "`pip install gguf sentencepiece` into the environment of alignd"
GET_IT: Final = (
    f"get llama.cpp (`git clone https://github.com/ggml-org/llama.cpp`), {_INSTALL}, and give --converter "
    "llama.cpp/convert_hf_to_gguf.py"
)


class ConverterError(Exception):
    """There is no converter, or it failed; `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def find_converter(given: str | None) -> Path:
    """The converter that was named, or one on the PATH.

    Raises:
        ConverterError: there is none; says what to install.
    """
    if given is not None:
        path = Path(given).expanduser().absolute()
        if not path.is_file():
            raise ConverterError(f"{path}: there is no such converter", GET_IT)
        return path
    found = next(filter(None, map(shutil.which, CONVERTER_NAMES)), None)
    if found is None:
        raise ConverterError("no converter to GGUF is on the PATH", GET_IT)
    return Path(found)


def convert(converter: Path, model: Path, target: Path, *, outtype: str) -> None:
    """Have a model folder converted to the file `target`.

    Args:
        outtype: what the converter calls the type of the weights; auto keeps theirs.
    Raises:
        ConverterError: it failed, or wrote nothing; has the last lines of what it said.
    """
    command = [sys.executable, str(converter), str(model), "--outfile", str(target), "--outtype", outtype]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode != 0 or not target.is_file():
        lines = [line.strip() for line in done.stdout.decode(errors="replace").splitlines() if line.strip(" ^~")]
        told = " | ".join(lines[-_MAX_TAIL_LINES:]) or "it said nothing"
        hint = _INSTALL if "ModuleNotFoundError" in told else "llama.cpp must know the model's kind and its tokenizer"
        raise ConverterError(f"{converter} ended with {done.returncode}: {told}", hint)
