"""The words of the command line, its help, its exit codes."""

from __future__ import annotations

import argparse
import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import cli, exitcodes
from daemon.command import Answer, Command, CommandError, Context, instant
from state import errors
from state.store import Store
from tests.state_world import NOW, write_model

ROOT = Path(__file__).resolve().parent.parent

# Scripts rely on every one of these: add, never rename or remove.
FROZEN = {
    "abort": "--reason",
    "approve": "--reason ref",
    "audit": "--limit --verify",
    "batches": "--limit --state",
    "bench-tasks": "--chat --include --limit --task refs",
    "bisect": "--axis --bad --bound --good probe",
    "completion": "shell",
    "config check": "",
    "config show": "",
    "consolidate": "--reason",
    "diff": "a b",
    "doctor": "",
    "drill": "refs",
    "export": "--base-model --converter --force --max-error --outtype --push --rank --to folder ref",
    "gc": "--dry-run --keep",
    "history": "--limit --since --state",
    "import": "--ref path",
    "init": "--approval --harm --model --no-trial --over-safety --page --retain --utility --yes -y folder",
    "judge": "--also file",
    "logs": "--follow --lines --unit -f",
    "man": "",
    "pause": "--reason",
    "pin": "ref",
    "plot": "--force --format --limit --out --ref charts",
    "probes from-tasks": "--include --limit --task",
    "probes import": "--dry-run file pack",
    "promote": "--force --reason ref",
    "quarantine drop": "entry",
    "quarantine list": "",
    "quarantine release": "entry",
    "reject": "--reason ref",
    "report": "--force --out ref",
    "resume": "--reason",
    "retry": "batch",
    "revert": "--anew --reason ref",
    "rollback": "--check --reason ref",
    "run": "--log-format --once",
    "serving": "",
    "serving sync": "--timeout",
    "show": "ref",
    "status": "--watch",
    "submit": "--sign --timeout --wait paths",
    "tag": "name ref",
    "unit": "--executable --gpu --network",
    "unpin": "ref",
    "untag": "name",
    "upgrade": "",
    "verify": "--deep --resume --sample",
}


def test_commands_and_options_are_as_published() -> None:
    found = {
        command.name: " ".join(sorted(flag for argument in command.arguments for flag in argument.flags))
        for command in cli.COMMANDS
    }
    assert found == FROZEN


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield child
                yield from parsers(child)


def test_every_option_has_help() -> None:
    for parser in parsers(cli.build_parser()):
        for action in parser._actions:
            assert action.help or isinstance(action, argparse._SubParsersAction), (parser.prog, action.dest)


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_help_has_purpose_and_examples_that_parse(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command.name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert command.purpose in " ".join(text.split())
    assert not command.purpose.endswith(".")
    assert command.examples
    for example in command.examples:
        assert example in text
        words = example.partition(" | ")[0].partition(" > ")[0].replace('"', "'").split("'")
        flat = [part for i, piece in enumerate(words) for part in ([piece] if i % 2 else piece.split())]
        assert cli.build_parser().parse_args(flat[1:]).command is command


@pytest.mark.parametrize("words", ["", *(command.name for command in cli.COMMANDS)])
def test_help_fits_80_columns(words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([*words.split(), "--help"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("group", cli.GROUP_PURPOSES)
def test_the_help_of_a_group_has_the_examples_of_its_commands(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([group, "--help"]) == 0
    text = capsys.readouterr().out
    examples = [example for command in cli.COMMANDS if command.name.split()[0] == group for example in command.examples]
    assert examples and all(f"  {example}\n" in text for example in examples)


def test_the_help_of_rollback_says_what_previous_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rollback", "--help"]) == 0
    assert "after a promote that may be a later one" in " ".join(capsys.readouterr().out.split())


def test_the_main_help_lists_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert f" {command.name.split()[0]}" in text
    for code, meaning in exitcodes.MEANINGS.items():
        assert f"{code}  {meaning}" in text


def test_exit_codes_are_as_published() -> None:
    assert list(exitcodes.MEANINGS) == [0, 1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 75, 78, 130, 143]


@pytest.mark.parametrize(
    "words",
    [
        ["--json", "-c", "home", "history"],
        ["history", "--json", "-c", "home"],
        ["-c", "home", "history", "--json"],
        ["--json", "log", "-c", "home"],
    ],
)
def test_config_and_json_stand_before_or_after_the_command(words: list[str]) -> None:
    args = cli.build_parser().parse_args(words)
    assert (args.service_file, args.json, args.command.name) == ("home", True, "history")


def test_config_and_json_stand_after_a_command_of_two_words() -> None:
    args = cli.build_parser().parse_args(["quarantine", "list", "--json", "-c", "home"])
    assert (args.service_file, args.json, args.command.name) == ("home", True, "quarantine list")


@pytest.mark.parametrize(
    "words", [[], ["quarantine"], ["nonsense"], ["show"], ["history", "--limit", "x"], ["rollback", "--rea", "x"]]
)
def test_wrong_usage_is_2_with_one_line_on_stderr(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == exitcodes.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("alignd: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["history", "--limit", "-1"], "a whole number from 0 on"),
        (["batches", "--limit", "1.5"], "a whole number from 0 on"),
        (["audit", "--limit=-3"], "a whole number from 0 on"),
        (["gc", "--keep", "-1"], "a whole number from 0 on"),
        (["logs", "--lines", "0"], "a whole number from 1 on"),
        (["history", "--since", "yesterday"], "a UTC date like 2026-01-31"),
        (["history", "--since", "2026-02-30"], "a UTC date like 2026-01-31"),
        (["submit", "--timeout", "-5", "x"], "seconds from 0 on"),
        (["submit", "--timeout", "nan", "x"], "seconds from 0 on"),
        (["bisect", "x", "--bound", "nan"], "a share from 0 to 1"),
    ],
)
def test_a_value_that_is_not_allowed_is_2_and_answered_with_what_is(
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "x").write_text('{"prompt": "florp"}\n')
    monkeypatch.chdir(tmp_path)
    Store.create(tmp_path / "home", write_model(tmp_path / "base"), actor="tester", now=NOW).close()
    (tmp_path / "home" / "service.toml").touch()
    assert cli.main(["-c", "home", *words]) == exitcodes.USAGE
    err = capsys.readouterr().err
    assert expected in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026", "2026-01-01T00:00:00+00:00"),
        ("2026-03", "2026-03-01T00:00:00+00:00"),
        ("2026-01-31", "2026-01-31T00:00:00+00:00"),
        ("2026-01-31T12:05", "2026-01-31T12:05:00+00:00"),
        ("2026-01-31T12:05:09.5Z", "2026-01-31T12:05:09.500000+00:00"),
        ("2026-01-31T12:05+02:00", "2026-01-31T12:05:00+02:00"),
    ],
)
def test_a_time_is_utc_where_it_names_no_zone(text: str, expected: str) -> None:
    assert instant(text).isoformat() == expected


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == exitcodes.OK
    assert re.fullmatch(r"alignd [0-9]+\.[0-9]+\.[0-9]+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize("words", [[], ["-c", str(ROOT)], ["-c", str(ROOT / "service.toml")]])
@pytest.mark.parametrize("command", [["status"], ["doctor"], ["run", "--once"], ["submit", "README.md"], ["rollback"]])
def test_the_source_of_alignd_is_no_home(
    words: list[str], command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("daemon.command.SYSTEM_SERVICE_FILE", ROOT / "nowhere")
    before = sorted(path.name for path in ROOT.iterdir())
    assert cli.main([*words, *command]) == exitcodes.NO_STORE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"alignd: {ROOT} holds the source of alignd and is no home; `alignd -c HOME`")
    assert sorted(path.name for path in ROOT.iterdir()) == before


def test_in_the_source_of_alignd_the_settings_can_be_seen_and_the_service_of_the_system_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("daemon.command.SYSTEM_SERVICE_FILE", tmp_path / "service.toml")
    assert cli.main(["config", "check"]) == exitcodes.OK
    assert str(ROOT / "service.toml") in capsys.readouterr().out
    assert cli.main(["init", "--no-trial", str(ROOT), "--model", "nothing"]) == exitcodes.FAILED
    assert "name a new folder" in capsys.readouterr().err
    (tmp_path / "service.toml").touch()
    assert cli.main(["status"]) == exitcodes.NO_STORE
    assert f"{tmp_path} has no store" in capsys.readouterr().err


def test_an_error_in_json_mode_is_json_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["history", "--json", "-c", str(tmp_path)]) == exitcodes.NO_STORE
    out, err = capsys.readouterr()
    assert out == ""
    error = json.loads(err)["error"]
    assert error["code"] == exitcodes.NO_STORE
    assert str(tmp_path) in error["message"]
    assert "alignd init" in error["hint"]


def raising(err: BaseException) -> Command:
    def run(context: Context, args: argparse.Namespace) -> Answer:
        raise err

    return Command("status", "Fail", ("alignd status",), run, needs_home=False)


@pytest.mark.parametrize(
    ("err", "code"),
    [
        (CommandError(exitcodes.NO_SERVICE, "nobody there"), 12),
        (errors.StoreError("x"), 1),
        (errors.StoreMissingError("x"), 10),
        (errors.StoreCorruptError("x"), 6),
        (errors.LockedError("x"), 11),
        (errors.NotFoundError("x", "look"), 4),
        (errors.RefusedError("x"), 5),
        (errors.ModelFormatError("x"), 78),
        (OSError(28, "No space left on device", "/x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_class_of_error_has_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], err: BaseException, code: int
) -> None:
    monkeypatch.setattr(cli, "COMMANDS", (raising(err),))
    assert cli.main(["status"]) == code
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("err", "hint"),
    [
        (errors.StoreCorruptError("x"), "`alignd verify --deep` names what is damaged, and how it is mended"),
        (errors.StoreCorruptError("x", "mend it so"), "mend it so"),
        (errors.ModelFormatError("x"), "copy the model again"),
        (sqlite3.DatabaseError("x"), "restored from a backup"),
        (OSError(5, "Input/output error", "/x"), "`dmesg`"),
        (FileNotFoundError(2, "No such file or directory", "/x"), "name one that is there"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_without_a_hint_of_its_own_says_what_can_be_done_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], err: BaseException, hint: str
) -> None:
    monkeypatch.setattr(cli, "COMMANDS", (raising(err),))
    cli.main(["status"])
    assert hint in capsys.readouterr().err


def test_a_wrong_setting_is_78_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "service.toml").write_text("[inbox]\nsetle_s = 1\n")
    assert cli.main(["-c", str(tmp_path), "config", "check"]) == exitcodes.CONFIG
    assert "settle_s" in capsys.readouterr().err


def test_an_own_bug_is_not_dressed_up_as_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "COMMANDS", (raising(ValueError("a bug")),))
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["status"])


def test_a_hostile_name_in_an_error_cannot_command_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "COMMANDS", (raising(errors.StoreError("a\x1b[2Jb", "c\x07")),))
    cli.main(["status"])
    assert capsys.readouterr().err == "alignd: a\\x1b[2Jb; c\\x07\n"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"{sys.executable} -m daemon --help | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_starting_up_imports_nothing_heavy() -> None:
    code = (
        "import sys, daemon.cli; daemon.cli.build_parser();"
        "print(sorted({'torch','transformers','numpy','pyarrow','rich','watchdog','structlog'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_group_alone_is_answered_with_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quarantine"]) == exitcodes.USAGE
    err = capsys.readouterr().err
    assert "`alignd quarantine` wants to be told what to do: " in err and "release" in err


def test_a_mistyped_command_is_answered_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rolback"]) == exitcodes.USAGE
    assert "did you mean `alignd rollback`?" in capsys.readouterr().err
    assert cli.main(["quarantine", "lst"]) == exitcodes.USAGE
    assert "did you mean `alignd quarantine list`?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["show", "v1", "--jsn"], "there is no option '--jsn'; did you mean `alignd show --json`?"),
        (["rollback", "v1", "--reson=zim"], "there is no option '--reson'; did you mean `alignd rollback --reason`?"),
        (["--confg", "/tmp", "status"], "there is no option '--confg'; did you mean `alignd --config`?"),
        (["--confg=/tmp", "status"], "there is no option '--confg'; did you mean `alignd --config`?"),
        (["show", "v1", "-z"], "there is no option '-z'; see `alignd show --help`"),
        (["status", "--", "x"], "unrecognized arguments: -- x; see `alignd status --help`"),
        (["tag", "v1", "good", "more"], "unrecognized arguments: more; see `alignd tag --help`"),
        (["--versoin"], "there is no option '--versoin'; did you mean `alignd --version`?"),
        (["quarantine", "list", "--zzzzz"], "there is no option '--zzzzz'; see `alignd quarantine list --help`"),
    ],
)
def test_a_wrong_option_is_told_with_the_one_that_may_be_meant(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == exitcodes.USAGE
    assert told in capsys.readouterr().err
