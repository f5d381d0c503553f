"""A command's private folder: left alone while its owner lives, swept once it is dead."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from state import gc
from state.scratch import private_folder
from state.store import Store
from state.verify import drill
from tests.state_world import NOW, make_store

ROOT = Path(__file__).resolve().parent.parent
Sweep = Callable[[Store], object]
SWEEPS: dict[str, Sweep] = {
    "recover": lambda store: store.recover(NOW),
    "gc": lambda store: gc.run(store, keep_materialized=3, now=NOW, actor="tester"),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)


def test_a_private_folder_is_closed_to_others_and_gone_at_the_end(store: Store) -> None:
    with private_folder(store.home, "drill") as folder:
        (folder / "part").write_text("zim")
        assert folder.parent == store.home and folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


@pytest.mark.parametrize("sweep", SWEEPS.values(), ids=list(SWEEPS))
def test_no_sweep_takes_a_living_process_its_folder(store: Store, sweep: Sweep) -> None:
    code = (
        "import sys; from pathlib import Path; from state.scratch import private_folder\n"
        "with private_folder(Path(sys.argv[1]), 'drill') as folder:\n"
        "    (folder / 'part').write_text('zim'); print(folder, flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, str(store.home)]
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        sweep(store)
        assert (folder / "part").read_text() == "zim"
        process.kill()
        process.wait(20)
        assert folder.exists()
        sweep(store)
        assert not folder.exists()


@pytest.mark.parametrize("sweep", SWEEPS.values(), ids=list(SWEEPS))
def test_no_sweep_takes_a_drill_its_folder(store: Store, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = store.home / ".tmp-drill-zim"

    def rebuild(_: object, __: int, staging: Path) -> None:
        staging.mkdir()
        sweep(store)
        assert staging.is_dir()

    monkeypatch.setattr("state.materialize.rebuild", rebuild)
    assert drill(store, [0], scratch) == []
    sweep(store)
    assert not scratch.exists()
