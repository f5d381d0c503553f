"""README.md says what is there: its tree, its commands, its links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.cli import COMMANDS, build_parser

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PACKAGES = ("daemon", "patches", "policies", "state", "benchmarks", "benchmarks/method", "benchmarks/world")


def _blocks(kind: str) -> str:
    return "\n".join(text for found, text in FENCE.findall(README) if found == kind)


def _tree() -> list[str]:
    """Paths of the tree: what is indented lies in the folder above it."""
    folder, paths = "", []
    for line in _blocks("tree").splitlines():
        name = line.split()[0]
        if name == "#":
            continue
        is_inside = line.startswith(" ")
        folder = folder if is_inside else name
        paths.append(folder + name if is_inside else name)
    return paths


def _commands() -> Iterator[str]:
    """What is typed after `alignd`, in console blocks and in running text."""
    typed = [line[2:] for line in _blocks("console").splitlines() if line.startswith("$ ")]
    typed += re.findall(r"`([^`\n]+)`", FENCE.sub("", README))
    for line in typed:
        for part in line.split(" && "):
            found = re.match(r"(?:sudo (?:-u alignd )?)?(?:\S*/bin/)?alignd ([^>|]*)", part)
            if found:
                yield found[1].strip()


def test_every_module_is_in_the_tree() -> None:
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).glob("*.py")
        if path.name != "__init__.py"
    }
    assert modules - set(_tree()) == set()


def test_every_path_in_the_tree_exists_and_stands_there_once() -> None:
    tree = _tree()
    assert [path for path in tree if not (ROOT / path).exists()] == []
    assert len(tree) == len(set(tree))


@pytest.mark.parametrize("command", sorted(set(_commands())))
def test_every_command_in_the_readme_is_one(command: str) -> None:
    if command in {known.name for known in COMMANDS}:
        return  # it is named, not typed
    if "--help" in command:
        with pytest.raises(SystemExit):
            build_parser().parse_args(shlex.split(command))
    else:
        assert build_parser().parse_args(shlex.split(command)).command is not None


def test_the_readme_shows_the_commands_of_the_story() -> None:
    shown = {re.sub(r"^-c \S+ ", "", command).split()[0] for command in _commands()}
    assert shown >= {"init", "run", "submit", "status", "history", "show", "rollback", "resume", "revert", "unit"}


def test_every_link_of_the_readme_leads_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", README, re.M)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", README):
        assert target[1:] in anchors if target.startswith("#") else (ROOT / target).exists(), target


def test_no_line_of_prose_is_wider_than_120_characters() -> None:
    assert [line for line in README.splitlines() if len(line) > 120 and not line.startswith("|")] == []
