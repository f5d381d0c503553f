"""Fixtures around one tiny real model and around a service with a fake worker; torch is imported only where it is used."""

from __future__ import annotations

import copy
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import structlog

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tests.fakes_service import FakeWorker

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: then it starts with one thread
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The same examples each time, so that a change is what makes a test fail; `--hypothesis-profile drawn` draws others. What
# explains a failure traces each line, which takes longer than a test may.
_PHASES = [phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.explain]
hypothesis.settings.register_profile("drawn", deadline=None, phases=_PHASES)
hypothesis.settings.register_profile("alike", hypothesis.settings.get_profile("drawn"), derandomize=True)
hypothesis.settings.load_profile("alike")


def pytest_configure(config: pytest.Config) -> None:
    """What third parties warn of is theirs to mend, any other warning is an error; SIGINT reaches what a test starts."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what runs in its background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # else no process of a test heeds it either
    peft_alias = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
    twice_watched = "ignore:Callback with id .* already exists:RuntimeWarning"  # watchdog, of a new folder
    for theirs in (peft_alias, twice_watched):
        config.addinivalue_line("filterwarnings", theirs)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that hold slow tests come first, so that none of them runs alone in the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _fresh_log() -> Iterator[None]:
    """No test logs to the stream of one before it, and no library's warning becomes a line of the next one's output."""
    handlers, level = logging.root.handlers[:], logging.root.level
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture(scope="session")
def run_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of one run of the tests share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if hasattr(request.config, "workerinput") else own


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of the tiny model, its weights in one safetensors file."""
    import torch

    from tests import tiny_model

    torch.set_num_threads(1)
    return tiny_model.save(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_sharded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, its weights in two files and an index."""
    from tests import tiny_model

    return tiny_model.save(tmp_path_factory.mktemp("tiny") / "sharded", max_shard_size="100KB")


@pytest.fixture(scope="session")
def tokenizer(tiny_folder: Path) -> PreTrainedTokenizerBase:
    """The tiny model's tokenizer."""
    from patches.model import load_tokenizer

    return load_tokenizer(tiny_folder)


@pytest.fixture(scope="session")
def _loaded_model(tiny_folder: Path) -> PreTrainedModel:
    import torch

    from patches.model import load_model

    return load_model(tiny_folder, dtype="float32", device=torch.device("cpu"))


@pytest.fixture
def model(_loaded_model: PreTrainedModel) -> PreTrainedModel:
    """The tiny model in float32, a copy that a test may change."""
    return copy.deepcopy(_loaded_model)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a store, probes and an empty inbox."""
    from tests.fakes_service import make_home

    return make_home(tmp_path)


@pytest.fixture
def worker(tmp_path: Path, home: Path) -> FakeWorker:
    """What a service there starts in place of the real worker."""
    from tests.fakes_service import FakeWorker

    return FakeWorker(tmp_path / "worker", home)
