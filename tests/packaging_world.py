"""What the tests of wheel and package share: the builder, and made-up wheels of its libraries."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent


def build_deb() -> ModuleType:
    """packaging/build_deb.py as a module; the folder is none of Python's packages."""
    found = sys.modules.get("build_deb")
    if found is None:
        spec = importlib.util.spec_from_file_location("build_deb", ROOT / "packaging" / "build_deb.py")
        assert spec is not None and spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        sys.modules["build_deb"] = found
        spec.loader.exec_module(found)
    return found


def why_no_wheel() -> str:
    """What this Python lacks to build a wheel without a network."""
    for name, at_least in (("pip", 22), ("setuptools", 77)):
        try:
            found = int(metadata.version(name).partition(".")[0])
        except metadata.PackageNotFoundError:
            return f"{name} is not installed"
        if found < at_least:
            return f"{name} {found} is too old; {at_least} is wanted"
    return ""


def why_no_package() -> str:
    """What this machine lacks to build a Debian package."""
    return why_no_wheel() or ("" if shutil.which("dpkg-deb") else "dpkg-deb is not installed")


def stub_wheels(requirements: str, lock: str, folder: Path) -> Path:
    """A wheel with nothing in it for each requirement, in the version of the lock."""
    folder.mkdir()
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", lock, re.MULTILINE))
    versions = {_plain(name): version for name, version in pins.items()}
    for name in re.findall(r"^[A-Za-z0-9_.-]+", requirements, re.MULTILINE):
        _stub_wheel(folder, _plain(name).replace("-", "_"), versions[_plain(name)])
    return folder


def _stub_wheel(folder: Path, name: str, version: str) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
