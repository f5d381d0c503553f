"""The child process: one intake, round or check, told to the supervisor line by line, and killed at will."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Final, TextIO, cast

import structlog

from daemon import config as settings
from daemon import exitcodes
from daemon.groundwork import check_texts
from daemon.log import WORKER_FAILED, Format, configure
from daemon.progress import Outcome, Reporter
from patches.errors import JudgeError, PatchError
from state.errors import LockedError, ModelFormatError, StoreCorruptError, StoreError
from state.store import Store

_PR_SET_PDEATHSIG: Final = 1
_OOM_SCORE: Final = "500"
_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_JUDGE_HINT: Final = "the round is tried again; where [judge] has changed since it began, `alignd abort` it first"
_DISK_BROKEN: Final = (errno.EIO, errno.EROFS)

_log = structlog.get_logger()


def main() -> int:
    """``python -m daemon.worker HOME intake SHA256|round ROUND_ID|verify all [LOG_FORM [CONFIG]]``.

    The exit code is 0 once it told an outcome, also a bad one.
    """
    if len(sys.argv) not in (4, 5, 6) or sys.argv[2] not in ("intake", "round", "verify"):
        print(main.__doc__, file=sys.stderr)
        return exitcodes.USAGE
    _die_with_parent()
    reporter = Reporter(_take_stdout())
    form = cast(Format, sys.argv[4] if len(sys.argv) > 4 else "auto")
    configure(sys.stderr, form=form, env=os.environ)
    structlog.contextvars.bind_contextvars(job=sys.argv[3])
    home = Path(sys.argv[1])
    config_path = Path(sys.argv[5]) if len(sys.argv) > 5 else home / settings.SERVICE_FILE
    run(home, sys.argv[2], sys.argv[3], reporter, config_path=config_path)
    return exitcodes.OK


def run(home: Path, kind: str, name: str, reporter: Reporter, *, config_path: Path | None = None) -> None:
    """Does one job and tells its outcome; errors of any kind become a `failed` event without batch text."""
    try:
        reporter.done(_work(home, kind, name, reporter, config_path=config_path or home / settings.SERVICE_FILE))
    except settings.ConfigError as err:  # settings or probes: not the batch
        _log.error(WORKER_FAILED, error=type(err).__name__, reason=str(err), where=_where(err))
        reporter.failed(f"the settings or probes cannot be used: {err}", retry=True, blameless=True)
    except (StoreCorruptError, ModelFormatError) as err:  # what every round builds on: not the batch
        _fail(reporter, err, retry=True, blameless=True)
    except (MemoryError, LockedError) as err:
        _fail(reporter, err, retry=True)
    except JudgeError as err:  # nothing is published unjudged: the round waits for its judge
        _log.error(WORKER_FAILED, error=type(err).__name__, reason=str(err), where=_where(err))
        reporter.failed(f"the judge cannot be used: {err}; {_JUDGE_HINT}", retry=True, blameless=True)
    except (PatchError, StoreError) as err:
        _fail(reporter, err, retry=False)
    except OSError as err:
        _fail_by_system(reporter, err)
    except Exception as err:  # noqa: BLE001 - the one place: a round must never take the service down
        # the message may quote what it was working on; the type and the place never do
        _log.error(WORKER_FAILED, error=type(err).__name__, where=_where(err))
        reporter.failed(f"{type(err).__name__} at {_where(err)[-1]}", retry=True)


def _work(home: Path, kind: str, name: str, reporter: Reporter, *, config_path: Path) -> Outcome:
    with Store.open(home) as store:
        if kind == "verify":
            return _verify(store, reporter)
        if kind == "intake":
            return _intake(store, name, reporter, config_path)
        return _round(store, name, reporter)


def _intake(store: Store, sha256: str, reporter: Reporter, config_path: Path) -> Outcome:
    from daemon import intake  # the supervisor never gets here, and must not pay for it

    check_texts(store)
    return intake.run(store, settings.load(config_path), sha256, reporter)


def _round(store: Store, round_id: str, reporter: Reporter) -> Outcome:
    from daemon import round as method  # torch comes with it

    row = store.round(round_id)
    return method.run(store, settings.parse(row.config), row, reporter)


def _verify(store: Store, reporter: Reporter) -> Outcome:
    from state.checked import verify_on

    reporter.progress("verify", 0.0)
    findings = verify_on(store, deep=True, progress=lambda done: reporter.progress("verify", done))
    told = [f"{finding.path}: {finding.what}{'; ' if finding.remedy else ''}{finding.remedy}" for finding in findings]
    return Outcome("accepted", tuple(told))


def _fail(reporter: Reporter, err: Exception, *, retry: bool, blameless: bool = False) -> None:
    hint = getattr(err, "hint", "")
    what = "the store is damaged" if blameless else type(err).__name__
    text = f"{what}: {err}" + (f"; {hint}" if hint else "")
    _log.error(WORKER_FAILED, error=type(err).__name__, reason=str(err), where=_where(err))
    reporter.failed(text, retry=retry, blameless=blameless)


def _fail_by_system(reporter: Reporter, err: OSError) -> None:
    is_full = err.errno in _DISK_FULL
    what = "no space left on the disk" if is_full else f"{type(err).__name__}: {err.strerror or 'unknown cause'}"
    text = f"{what} ({err.filename})" if err.filename else what
    _log.error(WORKER_FAILED, error=type(err).__name__, reason=text, where=_where(err))
    reporter.failed(text, retry=True, blameless=is_full or err.errno in _DISK_BROKEN)


def _where(err: BaseException) -> list[str]:
    """The call stack as places, innermost last; neither messages nor values."""
    frames = traceback.extract_tb(err.__traceback__)
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames] or ["unknown place"]


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # the parent may have died before prctl; the end of its pipe says so at any time
    threading.Thread(target=_watch_stdin, name="parent-watch", daemon=True).start()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


def _watch_stdin() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(exitcodes.FAILED)


def _take_stdout() -> TextIO:
    """The line to the supervisor, on a descriptor of its own; what libraries print goes to standard error."""
    own = os.dup(1)
    os.dup2(2, 1)
    stream: Any = os.fdopen(own, "w", encoding="utf-8")
    return cast(TextIO, stream)


if __name__ == "__main__":
    sys.exit(main())
