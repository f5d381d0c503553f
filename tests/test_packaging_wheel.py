"""The wheel: all that the program needs is in it, and it runs where nothing of the checkout is in reach."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from daemon import cli
from tests.packaging_world import ROOT, build_deb, why_no_wheel

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_no_wheel()), reason=why_no_wheel())]
PACKAGES = ("daemon", "patches", "policies", "state")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(build_deb().build_wheel(tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new virtual environment with this wheel in it; the libraries are those of these tests.

    They come by a path of their own and not as site packages, or the checkout that is installed there would come along.
    """
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--quiet",
        "--python",
        str(folder / "bin/python"),
    ]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    (site / "libraries.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    return folder / "bin" / "python"


def alignd(python: Path, *words: str, cwd: Path) -> str:
    """The installed command, as a user has it."""
    return run(python.with_name("alignd"), *words, cwd=cwd)


def run(*command: Path | str, cwd: Path) -> str:
    """A command's stdout, without what these tests tell their own Python."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_of_the_four_packages_is_in_the_wheel(wheel: Path) -> None:
    here = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = set(zipfile.ZipFile(wheel).namelist())
    assert here - found == set()
    assert {name for name in found if ".dist-info/" not in name and ".data/" not in name} == here


def test_what_an_installation_wants_beside_the_program_is_in_the_wheel(wheel: Path) -> None:
    found = {name.partition(".data/data/")[2] for name in zipfile.ZipFile(wheel).namelist() if ".data/" in name}
    wanted = {path.name for path in (ROOT / "packaging").iterdir() if path.is_file() and path.suffix != ".py"}
    assert found == {f"share/alignd/{name}" for name in {*wanted, "requirements.lock"}}


def test_the_installed_program_is_the_one_of_the_wheel_and_runs(python: Path, tmp_path: Path) -> None:
    assert alignd(python, "--version", cwd=tmp_path).startswith("alignd 0.")
    assert "ExecStart=" in alignd(python, "unit", "--gpu", cwd=tmp_path)
    assert "--model PATH" in alignd(python, "init", "--help", cwd=tmp_path)
    code = "import daemon, state, patches, policies; print(*(m.__file__ for m in (daemon, state, patches, policies)))"
    assert all(
        Path(path).is_relative_to(python.parent.parent) for path in run(python, "-c", code, cwd=tmp_path).split()
    )


@pytest.mark.parametrize("command", [command.name for command in cli.COMMANDS])
def test_every_command_of_the_installed_program_has_its_help(python: Path, tmp_path: Path, command: str) -> None:
    assert "usage: alignd" in alignd(python, *command.split(), "--help", cwd=tmp_path)


def test_the_installed_program_makes_a_home_with_its_page_templates_at_hand(python: Path, tmp_path: Path) -> None:
    model = ROOT / "benchmarks" / "world" / "model"
    alignd(python, "init", str(tmp_path / "home"), "--model", str(model), cwd=tmp_path)
    alignd(python, "-c", str(tmp_path / "home"), "report", "v0", "--out", str(tmp_path / "v0.html"), cwd=tmp_path)
    assert "<html" in (tmp_path / "v0.html").read_text()
