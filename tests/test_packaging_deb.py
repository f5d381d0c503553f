"""The Debian package: what is in it, and what it does to a clean root: installed, upgraded, removed and purged."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clean_root import CleanRoot, why_not
from tests.packaging_world import ROOT, build_deb, stub_wheels, why_no_package

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_no_package()), reason=why_no_package()),
]
HOME = "/var/lib/alignd"
PYTHON = "/usr/bin/python3"
LIBRARIES = "/opt/alignd"
# known and meant: no licence is stated, and a test has no address
LINTIAN_TAGS = (
    "bogus-mail-host,bogus-mail-host-in-debian-changelog,copyright-without-copyright-notice,"
    "initial-upload-closes-no-bugs,maintainer-script-calls-systemctl"
)


def built(folder: Path, **options: object) -> Path:
    builder = build_deb()
    return Path(builder.build(builder.Options(folder, **options)))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def tree(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in it, laid out in a folder."""
    folder = tmp_path_factory.mktemp("tree") / "root"
    subprocess.run(["dpkg-deb", "-R", str(package), str(folder)], check=True)
    return folder


def listed(package: Path) -> dict[str, tuple[str, str]]:
    """Path -> mode and owner of everything in a package."""
    done = subprocess.run(["dpkg-deb", "-c", str(package)], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=5) for line in done.stdout.splitlines()]
    return {row[5].removeprefix("."): (row[0], row[1]) for row in rows}


def test_files_are_where_debian_wants_them_and_of_root(package: Path) -> None:
    found = listed(package)
    assert set(found.values()) == {
        ("drwxr-xr-x", "root/root"),
        ("-rw-r--r--", "root/root"),
        ("-rwxr-xr-x", "root/root"),
    }
    assert {path for path, (mode, _) in found.items() if mode == "-rwxr-xr-x"} == {
        "/usr/bin/alignd",
        "/usr/lib/alignd/make-environment",
    }
    assert {
        "/etc/alignd/service.toml",
        "/usr/lib/systemd/system/alignd.service",
        "/usr/lib/systemd/system/alignd.socket",
        "/usr/lib/sysusers.d/alignd.conf",
        "/usr/lib/tmpfiles.d/alignd.conf",
        "/usr/share/alignd/requirements.txt",
        "/usr/share/doc/alignd/README.md",
        "/usr/share/doc/alignd/copyright",
        "/usr/share/doc/alignd/changelog.Debian.gz",
        "/usr/lib/alignd/lib/daemon/templates/report.html.jinja",
        "/usr/lib/alignd/lib/daemon/static/page.css",
    } <= found.keys()
    outside = {path for path in found if not path.startswith(("/usr/", "/etc/alignd/"))}
    assert outside == {"/", "/etc/"}
    assert [path for path in found if path.endswith(".pyc")] == []


def test_the_program_in_it_is_this_one_whole(tree: Path) -> None:
    for name in ("daemon", "patches", "policies", "state"):
        here = {path.relative_to(ROOT): path for path in (ROOT / name).rglob("*") if path.is_file()}
        here = {name: path for name, path in here.items() if "__pycache__" not in path.parts}
        library = tree / "usr/lib/alignd/lib"
        assert {name: path.read_bytes() for name, path in here.items()} == {
            path.relative_to(library): path.read_bytes() for path in (library / name).rglob("*") if path.is_file()
        }


def test_the_settings_are_a_conffile_that_can_be_read_as_they_are(tree: Path) -> None:
    from daemon.config import load

    assert (tree / "DEBIAN/conffiles").read_text() == "/etc/alignd/service.toml\n"
    assert load(tree / "etc/alignd/service.toml").inbox.settle_s == 5


def test_manual_page_and_completions_are_in_it_where_the_program_writes_them(tree: Path) -> None:
    from daemon import cli

    commands = {command.name for command in cli.COMMANDS}
    assert (tree / "usr/share/man/man1/alignd.1.gz").exists() == ("man" in commands)
    assert (tree / "usr/share/bash-completion/completions/alignd").exists() == ("completion" in commands)


def test_equal_sources_give_equal_bytes(package: Path, tmp_path: Path) -> None:
    assert built(tmp_path).read_bytes() == package.read_bytes()


def test_nothing_of_the_building_machine_is_in_it(tree: Path) -> None:
    for path in tree.rglob("*"):
        if path.is_file() and path.suffix not in (".gz", ".md"):
            assert str(ROOT).encode() not in path.read_bytes(), path


@pytest.mark.skipif(shutil.which("lintian") is None, reason="lintian is not installed")
def test_lintian_finds_nothing_but_what_is_known(package: Path) -> None:
    command = ["lintian", "--fail-on", "error,warning", "--suppress-tags", LINTIAN_TAGS, "--allow-root", str(package)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_unit_in_it_is_silent_under_systemd_analyze(tree: Path, tmp_path: Path) -> None:
    text = (tree / "usr/lib/systemd/system/alignd.service").read_text()
    assert f"ExecStart=/usr/bin/alignd -c {HOME}/service.toml run" in text
    unit = tmp_path / "alignd.service"
    unit.write_text(text.replace("/usr/bin/alignd", "/bin/true"))  # which is there on every machine
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_sysusers_and_tmpfiles_make_user_and_home_in_a_folder_that_is_a_root(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for name in ("sysusers.d", "tmpfiles.d"):
        shutil.copytree(tree / "usr/lib" / name, tmp_path / "usr/lib" / name)
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", "alignd.conf"], check=True)
    (line,) = [line for line in (tmp_path / "etc/passwd").read_text().splitlines() if line.startswith("alignd:")]
    assert line.endswith(f":{HOME}:/usr/sbin/nologin")
    done = subprocess.run(["systemd-tmpfiles", f"--root={tmp_path}", "--create", "alignd.conf"], check=False)
    assert done.returncode == 0
    assert sorted(path.name for path in (tmp_path / "var/lib/alignd").iterdir()) == [
        "inbox", "probes", "quarantine", "service.toml",
    ]  # fmt: skip


def test_bundled_libraries_lie_in_an_environment_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = build_deb()
    stubs = stub_wheels(needed(tmp_path), (ROOT / "requirements.lock").read_text(), tmp_path / "wheels")
    package = built(tmp_path / "out", bundle=True, pip=("--no-index", "--find-links", str(stubs)))
    assert not package.name.endswith("_all.deb")
    folder = tmp_path / "root"
    subprocess.run(["dpkg-deb", "-R", str(package), str(folder)], check=True)
    venv = folder / "usr/lib/alignd/venv"
    assert (venv / "bin/python").readlink() == Path(f"/usr/bin/python{builder._PYTHON}")
    (site,) = venv.glob("lib/python3*/site-packages")
    assert (site / "alignd.pth").read_text() == "/usr/lib/alignd/lib\n"
    names = {path.name.partition("-")[0].lower() for path in site.glob("*.dist-info")}
    assert {"torch", "transformers", "numpy"} <= names and "alignd" not in names
    assert not (site / "daemon").exists() and (folder / "usr/lib/alignd/lib/daemon/cli.py").exists()
    control = (folder / "DEBIAN/control").read_text()
    assert re.search(r"Depends: python3 \(>= 3\.\d+\), python3 \(<< 3\.\d+\), systemd", control)


def needed(folder: Path) -> str:
    """The requirements that the program names itself."""
    package = built(folder / "plain")
    subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "plain/root")], check=True)
    return (folder / "plain/root/usr/share/alignd/requirements.txt").read_text()


@pytest.fixture(scope="module")
def given(package: Path, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the clean root is given: the package, its next revision, a model, and wheels with nothing in them."""
    folder = tmp_path_factory.mktemp("given")
    folder.chmod(0o755)
    shutil.copy(package, folder / "alignd.deb")
    shutil.copy(built(folder / "next", revision=2), folder / "next.deb")
    shutil.copytree(ROOT / "benchmarks/world/model", folder / "model")
    stub_wheels(
        (tree / "usr/share/alignd/requirements.txt").read_text(),
        (tree / "usr/share/alignd/requirements.lock").read_text(),
        folder / "wheels",
    )
    return folder


@pytest.fixture(scope="module")
def root(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CleanRoot]:
    if why_not():
        pytest.skip(why_not())
    place = tmp_path_factory.mktemp("clean") / "root"
    place.mkdir()
    there = dict.fromkeys(("python3-venv", "systemd"), "1") | {"python3": "3.11.2-1"}
    with CleanRoot(place, given, there) as made:
        yield made


def modes(root: CleanRoot, *paths: str) -> list[str]:
    return root.run("stat", "-c", "%a %U %G %n", *paths).splitlines()


# From here on one story in one root: each test goes on where the one before it ended.


def test_it_is_installed_with_user_and_home_and_nothing_is_started(root: CleanRoot) -> None:
    said = root.run("dpkg", "-i", "/srv/given/alignd.deb")
    assert "Setting up alignd" in said and "warning" not in said
    assert root.run("grep", "^alignd:", "/etc/passwd").strip().endswith(f":{HOME}:/usr/sbin/nologin")
    assert modes(root, HOME, *(f"{HOME}/{name}" for name in ("inbox", "probes", "quarantine"))) == [
        f"750 alignd alignd {HOME}",
        f"2770 alignd alignd {HOME}/inbox",
        f"755 alignd alignd {HOME}/probes",
        f"700 alignd alignd {HOME}/quarantine",
    ]
    assert root.run("readlink", f"{HOME}/service.toml").strip() == "/etc/alignd/service.toml"
    assert "alignd" not in root.run("ps", "-eo", "args")
    assert root.run("dpkg", "--verify", "alignd") == ""


def test_the_installed_unit_is_silent_under_systemd_analyze(root: CleanRoot) -> None:
    assert root.run("systemd-analyze", "verify", "/usr/lib/systemd/system/alignd.service") == ""


def test_without_its_libraries_the_program_says_how_to_get_them(root: CleanRoot) -> None:
    said = root.run("alignd", "--version", code=1)
    assert "as root run /usr/lib/alignd/make-environment" in said and LIBRARIES in said


def test_the_environment_is_made_by_one_command_and_without_a_network(root: CleanRoot) -> None:
    if "ensurepip" not in root.run(PYTHON, "-c", "import ensurepip; print('ensurepip')", code=None):
        pytest.skip("python3-venv is not installed on this machine")
    words = ("/usr/lib/alignd/make-environment", "--no-index", "--find-links", "/srv/given/wheels")
    assert re.search(r"^alignd 0\.[0-9.]+$", root.run(*words), re.MULTILINE)
    assert re.search(r"^alignd 0\.[0-9.]+$", root.run(*words), re.MULTILINE), "it cannot be repeated"
    assert "--model PATH" in root.run("alignd", "init", "--help")
    assert root.run("find", "/usr/lib/alignd/lib/daemon/__pycache__", "-name", "cli.*.pyc") != ""


def with_real_libraries(root: CleanRoot) -> None:
    """The libraries of these tests, behind the empty ones; skips where Debian's Python is of another version."""
    version = root.run(PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    site = f"{LIBRARIES}/lib/python{version}/site-packages"
    if root.run("test", "-d", site, code=None) or version != build_deb()._PYTHON:
        pytest.skip(f"the libraries of these tests are for Python {build_deb()._PYTHON}, Debian's is {version}")
    root.run("sh", "-c", f"test -d {site} && echo /srv/packages > {site}/zz-packages.pth")


def alignd(root: CleanRoot, *words: str, code: int | None = 0) -> str:
    return root.run("alignd", *words, user="alignd", code=code)


def test_a_service_without_a_base_model_ends_and_says_what_to_set(root: CleanRoot) -> None:
    with_real_libraries(root)
    said = alignd(root, "run", "--once", code=10)
    assert "there is no base model at" in said and "set model.base in" in said


def test_a_service_with_one_makes_the_store_and_commands_find_it_without_being_told_where(root: CleanRoot) -> None:
    with_real_libraries(root)
    root.run("sed", "-i", 's|^# base = .*|base = "/srv/given/model"|', "/etc/alignd/service.toml")
    alignd(root, "run", "--once")
    assert "v0" in alignd(root, "status")
    assert "ExecStart=/usr/bin/alignd -c /var/lib/alignd/service.toml" in alignd(root, "unit")
    assert "everything stored is what was written" in alignd(root, "verify")
    assert modes(root, f"{HOME}/store", f"{HOME}/models/v0") == [
        f"700 alignd alignd {HOME}/store",
        f"755 alignd alignd {HOME}/models/v0",
    ]


def test_an_upgrade_keeps_settings_and_store(root: CleanRoot) -> None:
    root.run("sh", "-c", "echo '# mine' >> /etc/alignd/service.toml")
    said = root.run("dpkg", "-i", "/srv/given/next.deb")
    assert "0.1.0-2" in said or "-2)" in said
    assert "# mine" in root.run("cat", "/etc/alignd/service.toml")
    assert root.run("dpkg-query", "-W", "-f", "${Version} ${Status}", "alignd").endswith("-2 install ok installed")
    assert modes(root, f"{HOME}/inbox") == [f"2770 alignd alignd {HOME}/inbox"]


def test_removal_leaves_settings_and_home_and_no_file_of_its_own(root: CleanRoot) -> None:
    root.run("dpkg", "-r", "alignd")
    assert root.run("find", "/usr/lib/alignd", "/usr/bin/alignd", code=None).count("No such file") == 2
    assert "# mine" in root.run("cat", "/etc/alignd/service.toml")
    assert modes(root, f"{HOME}/inbox") == [f"2770 alignd alignd {HOME}/inbox"]


def test_a_purge_leaves_the_home_and_says_so(root: CleanRoot) -> None:
    root.run("mkdir", "-p", "/var/cache/alignd/hf")
    said = root.run("dpkg", "-P", "alignd")
    assert "versions, batches and probes in /var/lib/alignd are left" in " ".join(said.split())
    assert root.run("find", "/etc/alignd", "/var/cache/alignd", code=None).count("No such file") == 2
    assert root.run("find", HOME, "-maxdepth", "1", "-name", "inbox") != ""
    assert root.run("grep", "-c", "^alignd:", "/etc/passwd").strip() == "1"
