"""`init` asks what it needs, on a terminal only, checks every answer, and makes a whole home or none."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from daemon import basetrial, cli, commands_init, exitcodes
from daemon.checks import Check
from daemon.config import load
from state import durable
from tests.command_world import usable_base
from tests.state_world import content

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 120.0


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return usable_base(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of rows: enough of each kind, too few, empty, and none at all."""
    folder = tmp_path_factory.mktemp("rows")
    for name in ("over_safety", "utility", "retain", "harm"):
        lines = [json.dumps({"prompt": f"{name} florp {i}", "response": f"wuzzle {i}"}) for i in range(120)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "few.jsonl").write_text('{"prompt": "florp"}\n')
    (folder / "empty.jsonl").write_text("\n")
    (folder / "torn.jsonl").write_text('{"prompt": "flo')
    return folder


@pytest.fixture(autouse=True)
def quick_trial(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was tried; a model without a language answers nothing for real."""
    tried: list[Path] = []

    def try_out(folder: Path) -> Check:
        tried.append(folder)
        return Check("answers", "ok", "it answers in this test")

    monkeypatch.setattr(basetrial, "try_out", try_out)
    return tried


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Somebody at a terminal who gives these answers; what they were asked is in the stream that comes back."""

    def sit(lines: Sequence[object]) -> Terminal:
        asked = Terminal()
        monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{line}\n" for line in lines)))
        monkeypatch.setattr(sys, "stderr", asked)
        return asked

    return sit


def test_every_question_is_asked_and_every_answer_used(
    answers: Any, base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], quick_trial: list[Path]
) -> None:
    home = tmp_path / "home"
    files = [rows / f"{name}.jsonl" for name in ("over_safety", "utility", "retain", "harm")]
    asked = answers([home, base, *files, "y", "8420"])
    assert cli.main(["init"]) == 0
    for question in commands_init._QUESTIONS.values():
        assert f"{question}: " in asked.getvalue()
    config = load(home / "service.toml")
    assert (config.publish.approval, config.web.listen, config.model.base) == (True, "8420", str(base))
    assert (home / "probes" / "harm.jsonl").read_bytes() == (rows / "harm.jsonl").read_bytes()
    assert (home / "retain.jsonl").stat().st_mode & 0o777 == 0o644
    assert (home / "probes" / "harm.jsonl").stat().st_mode & 0o777 == 0o600
    out = capsys.readouterr().out
    assert "ok    probes: enough of them: 120 over-safety, 120 utility, 120 harm" in out
    assert "Put there" not in out and "doctor" in out
    assert quick_trial == [base]


def test_a_base_is_named_without_the_way_to_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_trial: list[Path]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert cli.main(["init", "home", "--yes", "--model", os.path.relpath(base)]) == 0
    assert load(tmp_path / "here" / "home" / "service.toml").model.base == str(base) and quick_trial == [base]


def test_a_wrong_answer_is_told_and_asked_for_again(
    answers: Any, base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "service.toml").touch()
    given = [
        "",
        tmp_path / "taken",
        home,
        "/nowhere",
        base,
        rows / "torn.jsonl",
        "/nowhere.jsonl",
        rows / "empty.jsonl",
    ]
    asked = answers([*given, rows / "over_safety.jsonl", "", "", "", "perhaps", "no", "99999", ""])
    assert cli.main(["init"]) == 0
    text = asked.getvalue()
    for said in (
        "DIR is missing", "is a home of alignd already", "/nowhere", "torn.jsonl, line 1", "/nowhere.jsonl: No such file",
        "empty.jsonl holds no rows", "'perhaps' is no answer; y or n is expected", "no page can be served at '99999'",
    ):  # fmt: skip
        assert said in text, said
    config = load(home / "service.toml")
    assert (config.publish.approval, config.web.listen) == (False, "")
    assert [path.name for path in (home / "probes").iterdir()] == ["over_safety.jsonl"]
    out = capsys.readouterr().out
    assert "bad   probes: probes/utility.jsonl: there is no such file" in out and "  probes/utility.jsonl" in out


def test_enter_leaves_out_what_may_be_left_out(answers: Any, base: Path, tmp_path: Path) -> None:
    answers([tmp_path / "home", base, *[""] * 6])
    assert cli.main(["init"]) == 0
    assert list((tmp_path / "home" / "probes").iterdir()) == []


def test_who_leaves_in_the_middle_has_made_nothing(answers: Any, base: Path, tmp_path: Path) -> None:
    asked = answers([tmp_path / "home", base])
    assert cli.main(["init"]) == exitcodes.USAGE
    assert "there was no answer; nothing was made; every answer is an option too" in asked.getvalue()
    assert not (tmp_path / "home").exists()


def test_what_is_given_is_not_asked_for_and_yes_asks_nothing(
    answers: Any, base: Path, rows: Path, tmp_path: Path
) -> None:
    options = ["--model", str(base), "--approval", "--page", "8420"]
    for name in ("over-safety", "utility", "retain", "harm"):
        options += [f"--{name}", str(rows / f"{name.replace('-', '_')}.jsonl")]
    asked = answers([])
    assert cli.main(["init", str(tmp_path / "a"), *options]) == 0
    assert not any(question in asked.getvalue() for question in commands_init._QUESTIONS.values())
    assert load(tmp_path / "a" / "service.toml").publish.approval
    assert cli.main(["init", str(tmp_path / "b"), "--model", str(base), "--yes"]) == 0
    assert cli.main(["init", "--yes"]) == exitcodes.USAGE
    assert cli.main(["--json", "init"]) == exitcodes.USAGE
    assert not any(question in asked.getvalue() for question in commands_init._QUESTIONS.values())


@pytest.mark.parametrize("words", [[], ["HOME"], ["--model", "BASE"]])
def test_nothing_is_asked_where_stdin_is_no_terminal(
    words: list[str], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{tmp_path / 'home'}\n{base}\n"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    named = [word.replace("HOME", str(tmp_path / "home")).replace("BASE", str(base)) for word in words]
    assert cli.main(["init", *named]) == exitcodes.USAGE
    assert "is missing; alignd init DIR --model PATH" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--over-safety", "ROWS/torn.jsonl"], exitcodes.CONFIG, "line 1"),
        (["--harm", "ROWS/empty.jsonl"], exitcodes.CONFIG, "holds no rows"),
        (["--retain", "/nowhere.jsonl"], exitcodes.FAILED, "No such file"),
        (["--page", "http://x"], exitcodes.USAGE, "no page can be served"),
    ],
)
def test_an_option_that_cannot_be_used_makes_nothing(
    words: list[str], code: int, said: str, base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [word.replace("ROWS", str(rows)) for word in words]
    assert cli.main(["init", str(tmp_path / "home"), "--model", str(base), *named]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_too_few_probes_are_told_with_what_to_do(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["init", str(tmp_path / "home"), "--model", str(base), "--over-safety", str(rows / "few.jsonl")]
    assert cli.main(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "bad probes: probes/over_safety.jsonl:" in out and "-> put harmless prompts there" in out


def test_rows_that_lie_in_the_folder_already_stay_and_are_not_overwritten(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "home" / "probes"
    place.mkdir(parents=True)
    (place / "utility.jsonl").write_bytes((rows / "utility.jsonl").read_bytes())
    words = ["init", str(tmp_path / "home"), "--model", str(base), "--utility"]
    before = content(tmp_path / "home")
    assert cli.main([*words, str(rows / "harm.jsonl")]) == exitcodes.FAILED
    assert "is there already" in capsys.readouterr().err and content(tmp_path / "home") == before
    assert cli.main([*words, str(place / "utility.jsonl")]) == 0
    assert content(tmp_path / "home").items() >= before.items()


def test_a_failure_leaves_no_copied_rows(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "home" / "probes").mkdir(parents=True)
    monkeypatch.setattr("state.store.Store.create", fail)
    words = ["init", str(tmp_path / "home"), "--model", str(base), "--harm", str(rows / "harm.jsonl")]
    assert cli.main(words) == exitcodes.FAILED
    assert content(tmp_path / "home") == {}


def test_a_disk_that_cannot_take_the_model_is_refused_before_anything_is_made(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(durable, "free_bytes", lambda path: 100)
    assert cli.main(["init", str(tmp_path / "a" / "home"), "--model", str(base)]) == exitcodes.FAILED
    assert f"{tmp_path} has 100 B of free disk" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_disk_that_cannot_take_a_round_is_told(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(durable, "free_bytes", lambda path: 1 << 20)
    assert cli.main(["init", str(tmp_path / "home"), "--model", str(base)]) == 0
    assert "bad   disk: 1,048,576 bytes are free" in capsys.readouterr().out


def test_a_model_that_does_not_answer_makes_no_home(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(basetrial, "try_out", lambda folder: Check("answers", "bad", "no", "take another"))
    assert cli.main(["init", str(tmp_path / "home"), "--model", str(base)]) == exitcodes.CONFIG
    assert capsys.readouterr().err == f"alignd: {base}: no; take another\n"
    assert not (tmp_path / "home").exists()
    assert cli.main(["init", str(tmp_path / "home"), "--model", str(base), "--no-trial"]) == 0


# the real trial

_real = basetrial.try_out


def test_a_real_model_is_loaded_and_answers(tiny_folder: Path) -> None:
    check = _real(tiny_folder)
    assert check.status == "ok" and "matrices to train, answers through its chat template" in check.detail


def test_no_module_of_the_folder_that_it_is_run_in_is_taken(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "daemon").mkdir()
    (tmp_path / "daemon" / "__init__.py").write_text("")
    (tmp_path / "daemon" / "basetrial.py").write_text("print('borogove')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    assert "borogove" not in _real(tiny_folder).detail


def spoil_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 48}))


def spoil_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}?")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def spoil_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "florp"}))


@pytest.mark.parametrize(
    ("spoil", "said"), [(spoil_shape, "size"), (spoil_template, "chat template"), (spoil_type, "florp")]
)
def test_a_model_that_cannot_be_loaded_or_asked_is_told(
    tiny_folder: Path, tmp_path: Path, spoil: Any, said: str
) -> None:
    for path in tiny_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    spoil(tmp_path)
    check = _real(tmp_path)
    assert check.status == "bad" and said in check.detail and "--no-trial" in check.advice


def test_a_trial_that_is_killed_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "dies"))
    (tmp_path / "dies").write_text("#!/bin/sh\nkill -9 $$\n")
    (tmp_path / "dies").chmod(0o755)
    check = _real(tmp_path)
    assert check.status == "bad" and "killed by signal 9" in check.detail and "memory" in check.advice


def test_a_person_at_a_real_terminal_is_asked(tiny_folder: Path, tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
        os.execve(sys.executable, [sys.executable, "-m", "daemon", "init"], environment)
    shown, deadline = "", time.monotonic() + LIMIT_S
    few = tmp_path / "few.jsonl"
    few.write_text('{"prompt": "florp"}\n')
    typed = [str(tmp_path / "home"), str(tiny_folder), str(few), "", "", "", "", ""]
    try:
        while time.monotonic() < deadline:
            asked = sum(question in shown for question in commands_init._QUESTIONS.values())
            if typed and asked > 8 - len(typed):
                os.write(terminal, f"{typed.pop(0)}\n".encode())
            if select.select([terminal], [], [], 0.2)[0]:
                shown += os.read(terminal, 65536).decode(errors="replace")
    except OSError:  # the other side has ended
        pass
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, shown
    told = shown.index("prompts in its gate part, the over_safety gate needs")
    assert told < shown.index(commands_init._QUESTIONS["utility"]), "the next question came first"
    assert "is ready" in shown and "answers through its chat template" in shown
    assert (tmp_path / "home" / "store").is_dir()


def test_init_of_a_pipe_does_not_wait(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "daemon", "init"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == exitcodes.USAGE and "DIR is missing" in done.stderr
