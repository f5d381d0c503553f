"""The pages of docs/ say what is so: their commands are typed, their output is compared, and the site is built."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import cli, reference
from daemon.config import parse
from tests.doc_pages import Command, Page, read_page, unlike
from tests.doc_shell import PageError, Shell
from tests.product import ROOT

DOCS = ROOT / "docs"
PAGES = {path.name: read_page(path) for path in (*sorted(DOCS.glob("*.md")), ROOT / "README.md")}
FIRST = "tutorial.md"
BEGINS = f"begins where {FIRST} ended"
KINDS = {"console", "toml", "text", "tree", ""}
# what no test here can run, and how often the pages have it
NOT_RUN = {
    "needs root and systemd": 3,
    "needs a package index": 1,
    "needs a store of an older alignd": 1,
    "needs systemd": 2,
    "these run the tests, which run this page": 1,
    "needs a serving engine": 1,
    "needs lm-evaluation-harness": 1,
}
MADE = set(reference.pages())
UNTYPED = {"logs", "bench-tasks", "probes from-tasks"}
"""Commands of alignd that no page types where a test runs: they need systemd, and lm-evaluation-harness."""
LOADED = re.compile(
    r"<(?:script|img|iframe|source|link|embed|object)\b[^>]*?\b(?:src|href|data)=[\"']([^\"']+)", re.DOTALL
)


def _typed(page: Page) -> Iterator[Command]:
    for block in page.blocks:
        if block.kind == "console" and not block.remark.startswith("not run"):
            yield from block.commands()


def _words(line: str) -> Iterator[str]:
    """What is typed after each `alignd` of a line."""
    for part in re.split(r"&&|\||;|\$\(", line):
        found = re.match(r"\s*(?:sudo (?:-u alignd )?)?(?:\S*/bin/)?alignd ([^>)]*)", part)
        if found:
            yield found[1].strip()


def _name(words: str) -> str:
    """The command that words are; its name alone names it, too."""
    if words in {command.name for command in cli.COMMANDS}:
        return words
    return str(cli.build_parser().parse_args(shlex.split(words)).command.name)


@pytest.fixture(scope="module")
def after_tutorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder when the tutorial is done; its pages are followed by that."""
    shell = Shell(tmp_path_factory.mktemp("tutorial") / "checkout")
    folder = shell.cwd
    shell.follow(PAGES[FIRST])
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(name for name, page in PAGES.items() if any(_typed(page))))
def test_the_commands_of_a_page_do_what_it_says(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    begins = PAGES[name].steps[0] == BEGINS
    var = request.getfixturevalue("after_tutorial") / "var" if begins or name == FIRST else None
    if name == FIRST:
        return
    shell = Shell(tmp_path / "checkout")
    if var is not None:
        (shell.cwd / "var").rmdir()
        shutil.copytree(var, shell.cwd / "var", symlinks=True)
    shell.follow(PAGES[name])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_file_of_a_home_is_on_the_page_about_files(after_tutorial: Path) -> None:
    told = set(re.findall(r"^\| `([^`]+?)/?` \|", (DOCS / "files.md").read_text(), re.MULTILINE))
    home = after_tutorial / "var" / "mine"
    of_the_tutorial = {"batches", "v1.html", "axes.png", "alignd.1", "alignd.completion"}
    there = {path.name for path in home.iterdir()} - of_the_tutorial
    stored = {f"store/{path.name}" for path in (home / "store").iterdir()} - {
        "store/ledger.db-shm",
        "store/ledger.db-wal",
    }
    run = {f"run/{path.name}" for path in (home / "run").iterdir()}
    assert len(stored) > 8 and (there - {"run"}) | stored | run <= told


def test_what_is_not_run_is_little_and_has_a_reason() -> None:
    remarks = [block.remark for page in PAGES.values() for block in page.blocks if block.remark.startswith("not run")]
    assert Counter(remark.removeprefix("not run: ") for remark in remarks) == NOT_RUN


def test_every_command_of_alignd_is_typed_on_some_page() -> None:
    typed = {_name(words) for page in PAGES.values() for command in _typed(page) for words in _words(command.line)
             if "--version" not in words}  # fmt: skip
    assert {command.name for command in cli.COMMANDS} - typed == UNTYPED


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_command_in_running_text_and_in_what_is_not_run_is_one(name: str) -> None:
    page = PAGES[name]
    lines = re.findall(r"`([^`\n]+)`", page.prose)
    lines += [c.line for block in page.blocks if block.remark.startswith("not run") for c in block.commands()]
    for words in (words for line in lines for words in _words(line)):
        if not {"--help", "--version", "COMMAND"} & set(words.split()) and "…" not in words:
            assert _name(words)


@pytest.mark.parametrize("name", sorted(PAGES))
def test_commands_stand_in_blocks_that_are_typed(name: str) -> None:
    for block in PAGES[name].blocks:
        assert block.kind in KINDS
        if block.kind != "console":
            assert not re.search(r"^\$ ", block.text, re.MULTILINE)
        if block.kind != "console" and name not in MADE:
            assert not re.search(r"^alignd ", block.text, re.MULTILINE)


@pytest.mark.parametrize("name", sorted(PAGES))
def test_settings_on_the_pages_are_settings(name: str) -> None:
    for block in PAGES[name].blocks:
        if block.kind == "toml":
            parse(tomllib.loads(block.text))


@pytest.mark.parametrize("name", ["threat-model.md", "reliability.md"])
def test_every_test_that_a_page_names_is_there(name: str) -> None:
    named = set(re.findall(r"`(?:tests[./])?(test_\w+)(?:\.py)?`", (DOCS / name).read_text()))
    assert len(named) > 10
    assert [test for test in sorted(named) if not (ROOT / "tests" / f"{test}.py").exists()] == []


@pytest.mark.slow
def test_the_site_is_built_and_asks_nothing_of_another_machine(tmp_path: Path) -> None:
    done = _build(DOCS, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    pages = {path.stem: path.read_text() for path in (tmp_path / "site").glob("*.html")}
    assert {path.stem for path in DOCS.glob("*.md")} <= set(pages)
    loaded = [found for text in pages.values() for found in LOADED.findall(text)]
    assert len(loaded) > 50 and [found for found in loaded if re.match(r"(\w+:)?//", found)] == []
    styles = [path.read_text(errors="replace") for path in (tmp_path / "site").rglob("*.css")]
    assert styles and [text for text in styles if re.search(r"(?:url\(|@import)\s*[\"']?(?:\w+:)?//", text)] == []


@pytest.mark.slow
def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "conf.py").write_bytes((DOCS / "conf.py").read_bytes())
    for link, code in (("other.md#a-part", 0), ("other.md#another", 1), ("missing.md", 1)):
        (docs / "index.md").write_text(f"# One\n\n[a link]({link})\n\n```{{toctree}}\nother\n```\n")
        (docs / "other.md").write_text("# Two\n\n## A part\n")
        assert _build(docs, tmp_path / "site").returncode == code, link


def _build(docs: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """`make docs`, into another folder."""
    words = ["-q", "-W", "--keep-going", "-E", "-b", "html", str(docs), str(site)]
    return subprocess.run([sys.executable, "-m", "sphinx", *words], capture_output=True, text=True)


def test_the_makefile_builds_it_as_strictly_as_the_test() -> None:
    (line,) = re.findall(r"^\t\$\(BIN\)/python -m sphinx (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line == "-q -W --keep-going -E -b html docs var/site"


@pytest.mark.parametrize(
    ("shown", "told", "missing"),
    [
        (("v1  published",), "made 3\nv1   published\n", ""),
        (("harm 75.0% (63 .. 84)",), "harm 3.1% (0 .. 6)", ""),
        (("d312a939c242  a.csv",), "ce7d895b92c9 a.csv", ""),
        (("held since … by …: odd",), "held since now by root: odd", ""),
        (("v1  published",), "v1  rejected", "v1  published"),
        (("one", "two"), "two\none", "two"),
        (("v2 -> v1",), "v2 -> v1 or so", "v2 -> v1"),
        (("one", "one"), "one", "one"),
    ],
)
def test_shown_output_is_compared_but_for_figures(shown: tuple[str, ...], told: str, missing: str) -> None:
    assert unlike(shown, told) == missing


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```console\n$ true\n```\n", ""),
        ("```console\n$ false\n```\n", "`false` ended with 1, not with 0"),
        ("<!-- exits with 1 -->\n```console\n$ false\n```\n", ""),
        ("<!-- exits with 1 -->\n```console\n$ true\n```\n", "ended with 0, not with 1"),
        ("```console\n$ echo one\ntwo\n```\n", "does not say `two`"),
        ("```console\n$ mkdir var/a && cd var/a\n$ export B=c\n$ pwd\n…/var/a\n$ echo $B\nc\n```\n", ""),
        ("```console\n$ echo one \\\n    two\none two\n```\n", ""),
        ("<!-- not run: no need -->\n```console\n$ false\n```\n", ""),
        ("<!-- prepare: false -->\n", "was to prepare something and ended with 1"),
        (
            "<!-- another terminal -->\n```console\n$ sleep 60\n```\n<!-- Ctrl-C there -->\n",
            "in another terminal ended with",
        ),
    ],
)
def test_a_page_is_followed_to_the_letter(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text)
    shell = Shell(tmp_path / "checkout")
    if fault:
        with pytest.raises(PageError, match=re.escape(fault)):
            shell.follow(read_page(tmp_path / "page.md"))
    else:
        shell.follow(read_page(tmp_path / "page.md"))


@pytest.mark.parametrize(
    "text", ["<!-- exits -->\n", "<!-- not run: alone -->\n", "<!-- exits with 1 -->\n<!-- prepare: x -->\n"]
)
def test_a_remark_that_steers_nothing_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(ValueError, match=r"page\.md"):
        read_page(tmp_path / "page.md")
