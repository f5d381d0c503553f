"""What shells are told at a Tab, and that real shells take it."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from daemon import cli, completion, exitcodes
from daemon.suggest import files
from state.store import Store
from tests.command_world import Alignd, usable_base
from tests.state_world import NOW, drop, make_version

ROOT = Path(__file__).resolve().parent.parent
WHO = {"actor": "tester", "now": NOW}
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    assert cli.main(["init", "--no-trial", str(folder / "home"), "--model", str(usable_base(folder / "base"))]) == 0
    with Store.open(folder / "home") as store:
        make_version(store, 1)
        make_version(store, 2, state="awaiting_approval")
        store.tag("good", "v1", **WHO)
        for name in ("two words.jsonl", "-dash.jsonl", "$(reboot).jsonl", "plain.jsonl"):
            claim = store.claim_batch(drop(store, f"{name}\n", name), name=name, **WHO)
            store.quarantine_batch(claim.batch.sha256, reason="one row", **WHO)
        store.set_aside(drop(store, "x", f"{'0' * 32}fifo"), name="fifo", reason="no file", **WHO)
    return folder / "home"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which this checkout's alignd stands first."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "alignd"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m daemon "$@"\n')
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def offered(line: str, path: str, cwd: Path = ROOT) -> list[str]:
    """What the shell is told when Tab is pressed at the end of a line, in the way bash asks."""
    env = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
    }
    env |= {"COMP_LINE": line, "COMP_POINT": str(len(line.encode())), "PATH": path}
    command = ["bash", "-c", "alignd 8>&1 9>&2 1>/dev/null"]
    done = subprocess.run(command, env=os.environ | env, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n") if done.stdout else []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("alignd rollb", ["rollback"]),
        ("alignd quarantine ", ["drop", "list", "release"]),
        ("alignd rollback --re", ["--reason"]),
        ("alignd completion ", ["bash", "fish", "zsh"]),
        ("alignd export v1 x --to m", ["mergekit"]),
        ("alignd -c HOME rollback v", ["v0", "v1", "v2"]),
        ("alignd rollback -c HOME v", ["v0", "v1", "v2"]),
        ("alignd -c HOME/service.toml drill v0 v", ["v0", "v1", "v2"]),
        ("alignd -c HOME promote @", ["@good"]),
        ("alignd -c HOME approve v", ["v2"]),
        ("alignd -c HOME untag ", ["good"]),
        ("alignd -c HOME show r0", ["r000001", "r000002"]),
        ("alignd -c HOME show batch", ["batch1.jsonl", "batch2.jsonl"]),
        ("alignd -c HOME show p", ["plain.jsonl", "previous"]),
        ("alignd -c HOME retry two", [r"two\ words.jsonl"]),
        ("alignd -c HOME quarantine release drop", ["drop-0000000"]),
        ("alignd -c HOME pause --reason ", []),
        ("alignd -c /nowhere rollback v", []),
    ],
)
def test_words_are_offered(home: Path, path: str, line: str, expected: list[str]) -> None:
    assert sorted(offered(line.replace("HOME", str(home)), path)) == expected


def test_batches_are_offered_by_their_ids_and_by_names_that_a_shell_takes_as_they_are(home: Path, path: str) -> None:
    with Store.open(home) as store:
        aside = store.ledger.batches("quarantined")
    found = offered(f"alignd -c {home} retry ", path)
    assert sorted(found) == sorted([*(row.sha256[:12] for row in aside), "plain.jsonl", r"two\ words.jsonl"])


def test_a_tilde_stands_for_the_users_home(home: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home.parent))
    assert offered("alignd -c ~/home untag ", path) == ["good"]


def test_the_home_in_which_the_user_stands_is_asked(home: Path, path: str) -> None:
    assert offered("alignd untag ", path, cwd=home) == ["good"]


def test_files_are_left_to_the_shell(home: Path, path: str) -> None:
    assert offered(f"alignd -c {home} submit {home}/serv", path) == [f"{home}/service.toml"]


def test_completions_change_nothing_and_do_no_command(home: Path, path: str) -> None:
    before = [(row.name, row.state) for row in Store.open(home).ledger.versions()]
    offered(f"alignd -c {home} rollback v0 ", path)
    offered(f"alignd -c {home} rollback v0", path)
    assert [(row.name, row.state) for row in Store.open(home).ledger.versions()] == before


def test_every_operand_that_names_something_of_the_home_is_completed() -> None:
    names = {"REF", "A", "B", "BATCH", "ENTRY"}
    for command in cli.COMMANDS:
        for argument in command.arguments:
            if argument.options.get("metavar") in names and command.name != "import":  # which looks into another home
                assert argument.words is not None, (command.name, argument.flags)
            if argument.options.get("metavar") in {"PATH", "FILE", "DIR", "KEY", "PROBE", "FOLDER"}:
                assert argument.words is files, (command.name, argument.flags)


def test_a_tab_loads_nothing_heavy(home: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from daemon import cli, suggest; from daemon.command import Context;"
        f"cli.build_parser(); assert suggest.everything(Context(Path({str(home)!r}) / 'service.toml'));"
        "print(sorted({'torch','transformers','numpy','pyarrow','rich','matplotlib','msgspec'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_home_of_a_broken_ledger_offers_nothing(tmp_path: Path, path: str) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "ledger.db").write_text("no ledger at all" * 100)
    assert offered(f"alignd -c {tmp_path} rollback ", path) == []


# the scripts


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_script_of_each_shell_is_printed(shell: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alignd = Alignd(home, capsys)
    assert "alignd" in alignd.text("completion", shell)
    assert alignd.json("completion", shell)["script"]


def test_an_unknown_shell_is_answered_with_those_that_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "tcsh"]) == exitcodes.USAGE
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


def in_shell(command: list[str], typed: str, path: str, cwd: Path, until: str) -> str:
    """What a shell shows on a real terminal after keys were typed; ended as soon as it shows what is waited for."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        env = {"PATH": path, "TERM": "xterm", "HOME": str(cwd), "PS1": "$ ", "LC_ALL": "C.UTF-8", "COLUMNS": "200"}
        os.execvpe(command[0], command, env)
    try:
        return _typed(terminal, typed, until)
    finally:
        os.close(terminal)
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def _typed(terminal: int, typed: str, until: str) -> str:
    shown, deadline = "", time.monotonic() + LIMIT_S
    for part in re.split(r"(?<=[\n\t])", typed):
        os.write(terminal, part.encode())
        wanted = until if part.endswith("\t") else "READY" if "READY" in part else ""
        while wanted and time.monotonic() < deadline and wanted not in shown.replace("'READY'", ""):
            if select.select([terminal], [], [], 0.5)[0]:
                shown += os.read(terminal, 65536).decode(errors="replace")
            elif part.endswith("\t"):
                os.write(terminal, b"\t")  # a list is shown at the second press
    return shown


def write_script(shell: str, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.main(["completion", shell]) == 0
    target.write_text(capsys.readouterr().out)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_at_a_tab(home: Path, path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_script("bash", tmp_path / "script", capsys)
    typed = f"source {tmp_path}/script; echo READY\nalignd -c {home} rollb\t"
    assert "rollback " in in_shell(["bash", "--norc", "-i"], typed, path, home, "rollback ")
    typed = f"source {tmp_path}/script; echo READY\nalignd -c {home} retry pl\t"
    assert "retry plain.jsonl" in in_shell(["bash", "--norc", "-i"], typed, path, home, "retry plain.jsonl")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes_at_a_tab(home: Path, path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    functions = tmp_path / "functions"
    functions.mkdir()
    write_script("zsh", functions / "_alignd", capsys)
    start = f"fpath=({functions} $fpath); autoload -U compinit; compinit -u -D; echo READY\n"
    shown = in_shell(["zsh", "-f", "-i"], f"{start}alignd -c {home} promote @\t", path, home, "@good")
    assert "@good" in shown
    shown = in_shell(["zsh", "-f", "-i"], f"{start}alignd -c {home} quarantine \t", path, home, "release")
    assert "Queue a quarantined entry again" in shown


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes(home: Path, path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_script("fish", tmp_path / "script", capsys)

    def asked(line: str) -> str:
        command = ["fish", "--no-config", "-c", f"source {tmp_path}/script; complete -C '{line}'"]
        env = os.environ | {"PATH": path, "HOME": str(tmp_path)}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    assert "rollback\tGo back to an earlier version and hold there" in asked("alignd rollb")
    assert "v1\tpublished" in asked(f"alignd -c {home} revert v")
    assert "good\tv1" in asked(f"alignd -c {home} untag g")


# the manual page


def page(capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert cli.main(["man"]) == 0
    return capsys.readouterr().out


def plain(text: str) -> str:
    return " ".join(text.replace("\\-", "-").replace("\\(aq", "'").replace("\\(ga", "`").replace("\\e", "\\").split())


def test_the_manual_page_has_every_command_option_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    text = plain(page(capsys))
    for command in cli.COMMANDS:
        assert f".B alignd {command.name}" in text and f"{command.purpose}." in text
        assert all(example in text for example in command.examples)
        for argument in command.arguments:
            assert all(flag in text for flag in argument.flags if flag.startswith("-"))
            assert " ".join(argument.options["help"].split()) in text
    for code, meaning in exitcodes.MEANINGS.items():
        assert f".B {code} {meaning}" in text


@pytest.mark.parametrize(
    "command",
    [
        ["groff", "-man", "-ww", "-Tutf8"],
        ["mandoc", "-Tlint", "-Wstyle"],
        ["man", "--warnings", "-l", "-Tutf8", "-"],
    ],
    ids=lambda command: command[0],
)
def test_the_manual_page_is_taken_without_a_warning(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, input=page(capsys), capture_output=True, text=True, check=False)
    said = done.stderr if command[0] != "mandoc" else done.stdout
    assert (done.returncode, said) == (0, "")


def test_a_text_of_the_manual_page_cannot_be_a_request_of_the_formatter() -> None:
    from daemon.manpage import _line

    assert _line(".so /etc/passwd") == r"\&.so /etc/passwd"
    assert _line("'so x") == r"\(aqso x"
    assert _line(r"a\fBb") == r"a\efBb"
