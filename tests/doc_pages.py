"""Pages in Markdown as their reader follows them: fenced commands, what is shown of their output, and remarks.

A remark is a comment, so that no reader sees it. Above a block of commands it says

- `not run: REASON`: nothing here can run it; the reasons are counted,
- `exits with N`: each command of the block ends so,
- `another terminal`: the command goes on while the page does.

Elsewhere it stands for itself: `begins where PAGE ended`, `prepare: COMMAND` (what brings about what the page is about),
`in a hurry: HOME` (rounds of seconds from here on) and `Ctrl-C there` (ends what runs in the other terminals).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_PARTS = re.compile(r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$|^<!-- (?P<remark>.*?) -->$", re.MULTILINE | re.DOTALL)
_ABOVE = re.compile(r"not run: .+|exits with \d+|another terminal")
_ALONE = re.compile(r"begins where \S+ ended|prepare: .+|in a hurry: \S+|Ctrl-C there", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block, with the remark above it."""

    kind: str
    text: str
    remark: str = ""

    def commands(self) -> Iterator[Command]:
        """What is typed, each with the lines that are shown after it."""
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            while command.endswith("\\"):
                more, _, shown = shown.partition("\n")
                command += f"\n{more}"
            yield Command(command, tuple(line for line in shown.splitlines() if line.strip()))


@dataclass(frozen=True)
class Command:
    """One command and what the page shows of its output."""

    line: str
    shown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """A page: its blocks and remarks, in order."""

    path: Path
    steps: tuple[Block | str, ...] = field(default=())

    @property
    def blocks(self) -> list[Block]:
        """Its fenced blocks."""
        return [step for step in self.steps if isinstance(step, Block)]

    @property
    def prose(self) -> str:
        """All but blocks and remarks."""
        return _PARTS.sub("", self.path.read_text(encoding="utf-8"))


def read_page(path: Path) -> Page:
    """A page of the repository.

    Raises:
        ValueError: a remark is none that is known, or stands above no commands.
    """
    steps: list[Block | str] = []
    above = ""
    for part in _PARTS.finditer(path.read_text(encoding="utf-8")):
        if part["remark"] is None:
            steps.append(Block(part["kind"], part["text"], above))
            above = ""
        elif above:
            break
        elif _ABOVE.fullmatch(part["remark"]):
            above = part["remark"]
        elif _ALONE.fullmatch(part["remark"]):
            steps.append(part["remark"])
        else:
            raise ValueError(f"{path.name}: {part['remark']!r} is no remark that tests.doc_pages knows")
    if above:
        raise ValueError(f"{path.name}: {above!r} stands above no commands")
    return Page(path, tuple(steps))


def unlike(shown: tuple[str, ...], told: str) -> str:
    """The first shown line that the output does not have after those before it; "" where it has all.

    Numbers, times and digests may differ, and `…` stands for anything: what counts is what is said.
    """
    lines = iter(_shape(line) for line in told.splitlines())
    for line in shown:
        wanted = _shape(line)
        if wanted == "…":
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in wanted.split("…")))
        if not any(pattern.fullmatch(line) for line in lines):
            return line
    return ""


def _shape(line: str) -> str:
    line = re.sub(r"\b(?=[0-9a-f]*[0-9])[0-9a-f]{12,}\b", "ID", line)
    line = re.sub(r"[█░▏▎▍▌▋▊▉▁▂▃▄▅▆▇]+", "BAR", line)
    line = re.sub(r"\d+(?:[.,:]\d+)*(?:e-?\d+)?", "N", line)
    return " ".join(re.sub(r"[-─]+", "-", line).split())
