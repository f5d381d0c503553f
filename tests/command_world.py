"""The command line on one home, in the test's own process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemon import cli
from tests.state_world import write_model


class Alignd:
    """`alignd -c HOME`."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = cli.main(["-c", str(self.home), *words])
        out, err = self._capsys.readouterr()
        return code, out, err

    def json(self, *words: str, code: int = 0) -> Any:
        got, out, err = self("--json", *words)
        assert got == code, err
        return json.loads(out)

    def text(self, *words: str, code: int = 0) -> str:
        got, out, err = self(*words)
        assert got == code, err
        return out


def usable_base(folder: Path) -> Path:
    """A model folder that `init` takes; nothing can be generated with it."""
    write_model(folder)
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    return folder
