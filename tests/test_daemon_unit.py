"""The systemd unit: valid, hardened, and the one that is in the repository."""

import shutil
import subprocess
from pathlib import Path

import pytest

from daemon.unit import DEFAULT_EXECUTABLE, DEFAULT_HOME, render_unit

ROOT = Path(__file__).resolve().parent.parent
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def _keys(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_unit_in_the_repository_is_the_one_that_is_printed() -> None:
    committed = (ROOT / "packaging" / "alignd.service").read_text()
    assert committed == render_unit(DEFAULT_HOME, DEFAULT_EXECUTABLE, gpu=True)


@pytest.mark.parametrize(
    "line",
    [
        "Type=notify",
        "KillMode=mixed",
        "OOMPolicy=continue",
        "WatchdogSec=180",
        "Restart=on-failure",
        "User=alignd",
        "StateDirectory=alignd",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "PrivateNetwork=yes",
        "Environment=PYTHONSAFEPATH=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false",
        "ExecStart=/opt/alignd/bin/alignd -c /var/lib/alignd/service.toml run",
    ],
)
def test_the_unit_has_what_the_service_relies_on(line: str) -> None:
    assert line in _keys(render_unit(DEFAULT_HOME, DEFAULT_EXECUTABLE, gpu=False))


def test_gpus_are_open_only_where_asked_for() -> None:
    with_gpu = _keys(render_unit(DEFAULT_HOME, DEFAULT_EXECUTABLE, gpu=True))
    without = _keys(render_unit(DEFAULT_HOME, DEFAULT_EXECUTABLE, gpu=False))
    assert "DeviceAllow=char-nvidia* rw" in with_gpu and "PrivateDevices=yes" not in with_gpu
    assert "PrivateDevices=yes" in without and not any("DeviceAllow" in line for line in without)
    assert "After=local-fs.target nvidia-persistenced.service" in with_gpu and "After=local-fs.target" in without


def test_the_network_is_open_only_where_and_as_far_as_asked_for() -> None:
    without = _keys(render_unit(DEFAULT_HOME, DEFAULT_EXECUTABLE, gpu=False))
    assert "PrivateNetwork=yes" in without and "RestrictAddressFamilies=AF_UNIX" in without
    text = render_unit(DEFAULT_HOME, DEFAULT_EXECUTABLE, gpu=False, network=["localhost", "10.1.0.0/16"])
    assert {"PrivateNetwork=no", "IPAddressDeny=any", "IPAddressAllow=localhost 10.1.0.0/16"} <= set(_keys(text))
    for address in ("10.1.0.0/99", "x\nExecStart=/bin/sh", "gpu-a"):
        with pytest.raises(ValueError, match="does not appear to be"):
            render_unit(DEFAULT_HOME, DEFAULT_EXECUTABLE, gpu=False, network=[address])


def test_a_home_elsewhere_is_writable_and_not_systemds_to_own() -> None:
    lines = _keys(render_unit(Path("/srv/models/alignd"), DEFAULT_EXECUTABLE, gpu=True))
    assert "ReadWritePaths=/srv/models/alignd" in lines
    assert not any(line.startswith("StateDirectory") for line in lines)


@pytest.mark.parametrize("home", ["relative/home", "/with space", "/percent%n", "/line\nExecStart=/bin/sh", "/a;b"])
def test_a_path_that_systemd_would_misread_is_refused(home: str) -> None:
    with pytest.raises(ValueError, match="path"):
        render_unit(Path(home), DEFAULT_EXECUTABLE, gpu=True)


@needs_systemd
@pytest.mark.parametrize(
    ("gpu", "network"), [(True, []), (False, []), (False, ["localhost", "10.0.0.0/8", "fd00::/8"])]
)
def test_systemd_finds_nothing_to_complain_about(tmp_path: Path, gpu: bool, network: list[str]) -> None:
    unit = tmp_path / "alignd.service"
    unit.write_text(render_unit(DEFAULT_HOME, Path("/bin/true"), gpu=gpu, network=network))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
@pytest.mark.parametrize(("gpu", "network", "most"), [(True, [], 10), (False, ["localhost", "10.0.0.0/8"], 15)])
def test_systemd_rates_the_exposure_at_most_as_budgeted(
    tmp_path: Path, gpu: bool, network: list[str], most: int
) -> None:
    """Tenths; the page needs no network of the unit's own, since its socket comes from systemd."""
    unit = tmp_path / "alignd.service"
    unit.write_text(render_unit(DEFAULT_HOME, Path("/bin/true"), gpu=gpu, network=network))
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={most}", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-300:]
