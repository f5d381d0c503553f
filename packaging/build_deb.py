"""Builds the Debian package of alignd: `python packaging/build_deb.py` in the checkout, with nothing but pip and dpkg-deb.

Without options the package holds alignd itself and no library of others: `/usr/lib/alignd/make-environment` on the target
fetches these by pip. With `--bundle` it holds them too and is for this machine's architecture and Python.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.parser import Parser
from email.utils import formatdate
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
DEBIAN: Final = ROOT / "packaging" / "debian"
SOURCES: Final = (
    "daemon",
    "patches",
    "policies",
    "state",
    "packaging",
    "pyproject.toml",
    "README.md",
    "requirements.lock",
)
"""What a wheel is made of."""
SCRIPTS: Final = ("postinst", "prerm", "postrm")
COMPLETIONS: Final = {
    "bash": "usr/share/bash-completion/completions/alignd",
    "zsh": "usr/share/zsh/vendor-completions/_alignd",
    "fish": "usr/share/fish/vendor_completions.d/alignd.fish",
}
_PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
_DESCRIPTION: Final = """\
Description: continual alignment of an open-weight language model in service
 alignd watches a folder. When somebody drops a batch of harmful prompts with
 the harmful answers they drew, it makes two small weight patches from it,
 merges them into the model, tests the result, and publishes it as the next
 version if it passes. Every version is kept, and any of them can be brought
 back with one command.
"""


@dataclass(frozen=True)
class Options:
    """What is built."""

    out: Path
    revision: int = 1
    maintainer: str = "unknown <unknown@localhost>"
    bundle: bool = False
    pip: tuple[str, ...] = ()
    """Words for pip where it fetches what is bundled."""


def main(words: Sequence[str] | None = None) -> int:
    """Builds the package and prints where it is."""
    parser = argparse.ArgumentParser(prog="build_deb.py", description="Builds the Debian package of alignd.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the package (default: dist)")
    parser.add_argument("--revision", type=int, default=1, help="Debian revision, behind the version (default: 1)")
    parser.add_argument(
        "--maintainer", default=_maintainer(), help="NAME <ADDRESS> (default: of DEBFULLNAME and DEBEMAIL)"
    )
    parser.add_argument("--bundle", action="store_true", help="put torch and all other libraries into the package")
    parser.add_argument("pip", nargs="*", help="with --bundle, behind --: words for pip, such as --extra-index-url URL")
    print(build(Options(**vars(parser.parse_args(words)))))
    return 0


def build(options: Options) -> Path:
    """The package; equal sources and options give equal bytes.

    Raises:
        SystemExit: a tool is missing.
    """
    if shutil.which("dpkg-deb") is None:
        raise SystemExit("build_deb.py: dpkg-deb is missing; it is in Debian's package dpkg")
    epoch = _epoch()
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        stage = Path(folder, "stage")
        version = f"{wheel.name.split('-')[1]}-{options.revision}"
        _place_program(stage, wheel)
        if options.bundle:
            _place_libraries(stage, wheel, options.pip)
        _place_system_files(stage)
        _place_documents(stage, version, epoch, options.maintainer)
        _place_written_by_itself(stage)
        _finish(stage, _control(stage, version, options), epoch)
        options.out.mkdir(parents=True, exist_ok=True)
        architecture = _architecture(bundle=options.bundle)
        package = options.out / f"alignd_{version}_{architecture}.deb"
        command = [
            "dpkg-deb",
            "--root-owner-group",
            "-Zxz",
            "-z1" if options.bundle else "-z6",
            "--build",
            str(stage),
            str(package),
        ]
        _run(command, env=os.environ | {"SOURCE_DATE_EPOCH": str(epoch)})
    return package


def build_wheel(folder: Path) -> Path:
    """The wheel of this checkout, made from a copy, so that nothing that an earlier build left gets into it."""
    source = folder / "source"
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, source / name)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("alignd-*.whl")
    return wheel


def _place_program(stage: Path, wheel: Path) -> None:
    """alignd itself, without the wheel's console script, which would be bound to this machine's Python."""
    library = stage / "usr/lib/alignd/lib"
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".data/" not in name]
        archive.extractall(library, names)
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        needed = Parser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist", [])
    (library / metadata).with_name("RECORD").unlink()  # pip would take it as its own
    _write(stage / "usr/bin/alignd", (DEBIAN / "launcher").read_text(), 0o755)
    _write(stage / "usr/lib/alignd/make-environment", (DEBIAN / "make-environment").read_text(), 0o755)
    own = [line for line in needed if "extra ==" not in line]
    _write(stage / "usr/share/alignd/requirements.txt", "".join(f"{line}\n" for line in own))
    for name in ("requirements.lock", "packaging/grafana.json", "packaging/alerts.yml"):
        _write(stage / "usr/share/alignd" / Path(name).name, (ROOT / name).read_text())


def _place_libraries(stage: Path, wheel: Path, pip: Sequence[str]) -> None:
    """A virtual environment that belongs to the package; Debian's own Python is what it runs."""
    venv = stage / "usr/lib/alignd/venv"
    site = venv / f"lib/python{_PYTHON}/site-packages"
    constraint = str(ROOT / "requirements.lock")
    _pip("install", "--no-compile", "--target", str(site), "--constraint", constraint, *pip, str(wheel))
    for path in (
        *(site / name for name in SOURCES[:4]),
        *site.glob("alignd-*.dist-info"),
        site / "bin",
        site / "share",
    ):
        if path.exists():
            shutil.rmtree(path)
    _write(site / "alignd.pth", "/usr/lib/alignd/lib\n")
    _write(venv / "pyvenv.cfg", f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {_PYTHON}\n")
    (venv / "bin").mkdir()
    (venv / "bin/python").symlink_to(f"/usr/bin/python{_PYTHON}")


def _place_system_files(stage: Path) -> None:
    sys.path.insert(0, str(ROOT))
    from daemon.unit import DEFAULT_HOME, render_unit

    unit = render_unit(DEFAULT_HOME, Path("/usr/bin/alignd"), gpu=True).splitlines(keepends=True)
    unit[0] = "# `systemctl edit alignd` changes it; `alignd unit --help` says what may be wanted\n"
    _write(stage / "usr/lib/systemd/system/alignd.service", "".join(unit))
    for source, target in {
        "packaging/alignd.socket": "usr/lib/systemd/system/alignd.socket",
        "packaging/sysusers.conf": "usr/lib/sysusers.d/alignd.conf",
        "packaging/tmpfiles.conf": "usr/lib/tmpfiles.d/alignd.conf",
        "packaging/debian/service.toml": "etc/alignd/service.toml",
    }.items():
        _write(stage / target, (ROOT / source).read_text())


def _place_documents(stage: Path, version: str, epoch: int, maintainer: str) -> None:
    folder = stage / "usr/share/doc/alignd"
    _write(folder / "copyright", (DEBIAN / "copyright").read_text())
    _write(folder / "README.md", (ROOT / "README.md").read_text())
    for path in sorted((ROOT / "docs").glob("*.md")):
        _write(folder / "docs" / path.name, path.read_text())
    _write_gzip(folder / "changelog.gz", (ROOT / "CHANGELOG.md").read_text())
    date = formatdate(epoch, localtime=False).replace("-0000", "+0000")
    entry = f"alignd ({version}) stable; urgency=medium\n\n  * See changelog.gz.\n\n -- {maintainer}  {date}\n"
    _write_gzip(folder / "changelog.Debian.gz", entry)


def _place_written_by_itself(stage: Path) -> None:
    """The manual page and the completions, where this version of the program writes them."""
    _write_gzip(stage / "usr/share/man/man1/alignd.1.gz", _said("man"))
    for shell, target in COMPLETIONS.items():
        _write(stage / target, _said("completion", shell))


def _said(*words: str) -> str:
    """What a command prints; ends the program where it fails."""
    return _run([sys.executable, "-m", "daemon", *words], cwd=ROOT)


def _control(stage: Path, version: str, options: Options) -> str:
    major, minor = sys.version_info[:2]
    python = (
        f"python3 (>= {_PYTHON}), python3 (<< {major}.{minor + 1})"
        if options.bundle
        else "python3 (>= 3.11), python3-venv"
    )
    need = f"{python}, systemd | systemd-standalone-sysusers, systemd | systemd-standalone-tmpfiles"
    num_kib = sum(-(-path.lstat().st_size // 1024) for path in _files(stage))
    return (
        f"Package: alignd\nVersion: {version}\nArchitecture: {_architecture(bundle=options.bundle)}\n"
        f"Maintainer: {options.maintainer}\nInstalled-Size: {num_kib}\nDepends: {need}\n"
        f"Section: science\nPriority: optional\n{_DESCRIPTION}"
    )


def _finish(stage: Path, control: str, epoch: int) -> None:
    """The folder DEBIAN, and modes and times that do not depend on whoever builds."""
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(stage)}\n" for path in _files(stage)]
    conffiles = [f"/{path.relative_to(stage)}\n" for path in _files(stage / "etc")]
    _write(stage / "DEBIAN/control", control)
    _write(stage / "DEBIAN/md5sums", "".join(sums))
    _write(stage / "DEBIAN/conffiles", "".join(conffiles))
    for name in SCRIPTS:
        _write(stage / "DEBIAN" / name, (DEBIAN / name).read_text(), 0o755)
    for path in (*stage.rglob("*"), stage):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def _files(folder: Path) -> Iterator[Path]:
    """Every regular file under a folder but those that dpkg does not install, in order."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return (path for path in found if "DEBIAN" not in path.relative_to(folder).parts[:1])


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _write_gzip(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def _architecture(*, bundle: bool) -> str:
    return _run(["dpkg", "--print-architecture"]).strip() if bundle else "all"


def _maintainer() -> str:
    """Who builds, by the variables that Debian's own tools read."""
    address = os.environ.get("DEBEMAIL")
    return f"{os.environ.get('DEBFULLNAME', 'unknown')} <{address}>" if address else Options.maintainer


def _epoch() -> int:
    """The time that all files get: SOURCE_DATE_EPOCH, else that of the last commit, else of the changelog."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given:
        return int(given)
    done = subprocess.run(
        ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"], capture_output=True, text=True, check=False
    )
    return int(done.stdout) if done.returncode == 0 else int((ROOT / "CHANGELOG.md").stat().st_mtime)


def _pip(*words: str) -> None:
    _run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words])


def _run(command: Sequence[str], env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"build_deb.py: `{' '.join(command)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
