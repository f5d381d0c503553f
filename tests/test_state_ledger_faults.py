"""I/O errors inside SQLite: at any call that concerns the ledger's files, nothing is harmed and the repeat succeeds.

Each second call here, all of them in `make torture`.
"""

import subprocess
import sys

import pytest

from tests import ledger_faults


@pytest.mark.slow
@pytest.mark.skipif(ledger_faults.COMPILER is None, reason="no C compiler: install gcc")
def test_an_io_error_at_any_call_of_sqlite_harms_nothing_and_the_repeat_succeeds() -> None:
    command = [sys.executable, "-m", "tests.ledger_faults", "--every", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "operations, nothing broken" in done.stdout
