"""The systemd unit of the service."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Final

DEFAULT_HOME: Final = Path("/var/lib/alignd")
DEFAULT_EXECUTABLE: Final = Path("/opt/alignd/bin/alignd")

_UNIT: Final = """\
# {header}
[Unit]
Description=Continual alignment of an open-weight language model
Documentation=file:{home}/service.toml
After=local-fs.target{after_gpu}
StartLimitIntervalSec=1h
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
ExecStart={executable} -c {home}/service.toml run
ExecReload=/bin/kill -HUP $MAINPID
User=alignd
Group=alignd
{directories}
WorkingDirectory={home}
Environment=PYTHONSAFEPATH=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
Environment=HF_HOME=/var/cache/alignd/hf TRITON_CACHE_DIR=/var/cache/alignd/triton
Environment=TORCHINDUCTOR_CACHE_DIR=/var/cache/alignd/inductor

# Killing it is safe at any moment; the time is only for an orderly end of the worker.
KillMode=mixed
TimeoutStartSec=300
TimeoutStopSec=60
WatchdogSec=180
Restart=on-failure
RestartSec=5
# No restart mends a wrong service.toml, or a store that is missing, damaged or of a newer alignd.
RestartPreventExitStatus=2 6 10 13 78
# A worker that ran out of memory must not take the supervisor with it.
OOMPolicy=continue
LimitNOFILE=65536
LimitCORE=0
UMask=0027

# The worker needs the weights and the batch, and nothing else of the machine.
ProtectSystem=strict
ReadWritePaths={home}
ProtectHome={protect_home}
PrivateTmp=yes
{devices}
{network}
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectClock=yes
ProtectHostname=yes
ProtectControlGroups=yes
ProtectProc=invisible
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
NoNewPrivileges=yes
RemoveIPC=yes
CapabilityBoundingSet=
AmbientCapabilities=
SystemCallArchitectures=native
SystemCallFilter=@system-service @resources
SystemCallFilter=~@privileged
# MemoryDenyWriteExecute stays off: torch, oneDNN and triton compile at run time.

[Install]
WantedBy=multi-user.target
"""

_GPU_DEVICES: Final = """\
# PrivateDevices would hide the GPU. The nodes must exist: run nvidia-persistenced.
PrivateDevices=no
DevicePolicy=closed
DeviceAllow=char-nvidia* rw
DeviceAllow=char-drm rw
DeviceAllow=char-kfd rw"""
_NO_NETWORK: Final = "PrivateNetwork=yes\nIPAddressDeny=any\nRestrictAddressFamilies=AF_UNIX"
_NETWORK: Final = """\
# Replicas of [[serving]], the metrics endpoint and a judge of kind "http" are reached; nothing else is.
PrivateNetwork=no
IPAddressDeny=any
IPAddressAllow={addresses}
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6"""
_NAMED_ADDRESSES: Final = ("localhost", "link-local", "multicast", "any")
_CPU_DEVICES: Final = "PrivateDevices=yes\nDevicePolicy=closed"
_HEADER: Final = "/etc/systemd/system/alignd.service, as `alignd unit` prints it"
_STATE_DIRECTORIES: Final = "StateDirectory=alignd\nStateDirectoryMode=0750\n"
_CACHE_DIRECTORIES: Final = "CacheDirectory=alignd\nCacheDirectoryMode=0750"


def render_unit(home: Path, executable: Path, *, gpu: bool, network: Sequence[str] = ()) -> str:
    """The hardened unit for a service in ``home``, run by ``executable``; ``gpu`` opens the GPUs to it.

    Args:
        network: addresses and networks that it may reach and be reached from, as systemd's IPAddressAllow takes them;
            none: it has no network at all.

    Raises:
        ValueError: a path is not absolute, or has a character that systemd would read as something else; or an address is
            none.
    """
    for path in (home, executable):
        _refuse_unsafe(path)
    state = _STATE_DIRECTORIES if home == DEFAULT_HOME else ""
    return _UNIT.format(
        header=_HEADER,
        home=home,
        executable=executable,
        directories=state + _CACHE_DIRECTORIES,
        protect_home="read-only" if _is_under_home(home) or _is_under_home(executable) else "yes",
        after_gpu=" nvidia-persistenced.service" if gpu else "",
        devices=_GPU_DEVICES if gpu else _CPU_DEVICES,
        network=_NETWORK.format(addresses=" ".join(map(_address, network))) if network else _NO_NETWORK,
    )


def _address(text: str) -> str:
    if text not in _NAMED_ADDRESSES:
        ip_network(text, strict=False)
    return text


def _is_under_home(path: Path) -> bool:
    return any(path.is_relative_to(top) for top in ("/home", "/root", "/run/user"))


def _refuse_unsafe(path: Path) -> None:
    text = str(path)
    if not path.is_absolute():
        raise ValueError(f"{text}: a unit needs an absolute path")
    if not text.isprintable() or any(char in text for char in " %\"'\\$;:"):
        raise ValueError(f"{text}: a path in a unit may hold no space, quote, backslash or any of % $ ; :")
