"""The pages of docs/ that are made from the code are what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from daemon import cli, config_told, exitcodes, reference, reference_settings
from daemon.command import Argument, Command
from daemon.config import Config, GateSection, GatesSection, InboxSection

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = reference.pages()


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_is_what_the_code_says(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name], "`python -m daemon.reference docs` writes it anew"


def test_every_page_is_written_into_the_folder_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reference.main([str(tmp_path)]) == exitcodes.OK
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == PAGES
    assert reference.main([]) == reference.main([str(tmp_path / "missing")]) == exitcodes.USAGE
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_every_command_is_there_with_its_arguments_and_examples(command: Command) -> None:
    (section,) = re.findall(rf"^### alignd {command.name}\n(.*?)(?=^##|\Z)", PAGES["commands.md"], re.M | re.S)
    assert f"{command.purpose}." in section
    for argument in command.arguments:
        value = argument.flags[-1] if argument.flags[-1].startswith("-") else argument.options["metavar"]
        assert re.search(rf"^\| `[^`]*{re.escape(value)}", section, re.M), value
    assert all(f"\n{example}\n" in section for example in command.examples)


def test_an_argument_is_written_as_it_is_given() -> None:
    usage = {
        "DIR": Argument(("folder",), {"metavar": "DIR"}),
        "[REF]": Argument(("ref",), {"metavar": "REF", "nargs": "?"}),
        "PATH …": Argument(("paths",), {"metavar": "PATH", "nargs": "+"}),
        "[--gpu]": Argument(("--gpu",), {"action": "store_true"}),
        "[-f, --follow]": Argument(("-f", "--follow"), {"action": "store_true"}),
        "--reason REASON": Argument(("--reason",), {"required": True}),
        "[--to hf|peft]": Argument(("--to",), {"choices": ("hf", "peft")}),
    }
    assert [reference._usage(argument) for argument in usage.values()] == list(usage)


def test_every_setting_is_there_with_its_default() -> None:
    page = PAGES["settings.md"]
    for line in (
        "| `settle_s` | number from 0 | `5.0` | A drop is complete when",
        '| `preset` | `"alignd"`, `"safepatching"` | `"alignd"` |',
        "| `learning_rate` | number above 0 or nothing | none |",
        "| `num_threads` | whole number from 0 | `0` |",
        "| `alphas` | list: number | `[0.95]` |",
        "| `name` | text | must be given |",
        '| `harm` | `"required"` | `0.1` |  | `0.03` |  | `20` |',
        '| `derive.safety.objective` | `"ascent"` |',
    ):
        assert line in page
    assert not re.search(r"^\| `.*\|  \|$", page, re.M), (
        "a setting without a meaning: say it in a string below the field"
    )
    assert set(_keys(Config)) <= set(re.findall(r"^\| `(\w+)` \|", page, re.M))


def _keys(section: type[msgspec.Struct]) -> list[str]:
    keys = []
    for field in msgspec.structs.fields(section):
        inner = config_told.nested(field.type)
        keys += _keys(inner) if inner and inner is not GateSection else [field.encode_name]
    return keys


def test_a_setting_is_told_by_the_text_below_it() -> None:
    told = reference_settings.told(InboxSection)
    assert told["signers"] == "A folder of public keys, `<signer>.pem`, Ed25519."
    assert reference_settings.told(GatesSection)["utility"] == "Of 30 probes, two wrong answers may be chance."


def test_every_exit_code_and_every_path_is_there() -> None:
    assert all(f"| {code} | {meaning} |" in PAGES["exit-codes.md"] for code, meaning in exitcodes.MEANINGS.items())
    rows = re.findall(r"^\| `[^`]+` \| (.*) \|$", PAGES["files.md"].partition("## The ledger")[0], re.M)
    assert len(rows) > 20 and all(rows), "a path without a meaning: give its property in state/layout.py a docstring"
    assert "`store/reserve`" in PAGES["files.md"] and "### rounds" in PAGES["files.md"]


def test_a_table_keeps_its_cells_apart() -> None:
    assert reference.table(("a", "b"), [("x | y", "1\n2")]) == "| a | b |\n| --- | --- |\n| x \\| y | 1 2 |\n"
