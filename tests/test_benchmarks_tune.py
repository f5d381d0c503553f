"""Ours with other settings: what is run, with which settings, and what is printed of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from benchmarks.method import run, tune
from benchmarks.method.ground import Ground
from benchmarks.method.play import Played
from benchmarks.method.summary import single_numbers
from benchmarks.method.tune import COLUMNS, DEFAULT, Trial
from daemon.config import Config
from tests.made_up_results import single

VARIANT = "derive.safety.max_steps = 90; derive.retain.wrapped_weight = 7.5"


def in_this_process(
    trials: Sequence[Trial], work: Callable[[Trial], object], num_workers: int
) -> Iterator[tuple[Trial, str | None]]:
    for trial in trials:
        try:
            work(trial)
        except RuntimeError as err:
            yield trial, str(err)
        else:
            yield trial, None


def figures(trial: Trial) -> None:
    if trial.variant != DEFAULT and trial.seed == 7:
        raise RuntimeError("no memory")
    trial.out.write_text(json.dumps(dict.fromkeys(COLUMNS, 0.25 if trial.variant == DEFAULT else trial.seed / 10)))


def test_every_variant_is_tried_on_every_seed_beside_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune, "run_each", in_this_process)
    monkeypatch.setattr(tune, "run_trial", figures)
    assert tune.main([VARIANT, "--seeds", "5", "7"]) == 1
    out, err = capsys.readouterr()
    head, _, default, variant = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in out.splitlines())
    assert head == ["seeds 5 / 7", *COLUMNS]
    assert default == [DEFAULT, *["25.0 / 25.0"] * len(COLUMNS)]
    assert variant == [VARIANT, *["50.0 / -"] * len(COLUMNS)]
    assert f"{VARIANT}, seed 7: no memory" in err and err.count("done") == 3


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("derive.safety.max_step = 90", "did you mean `max_steps`?"),
        ("derive.safety.max_steps 90", "Expected '='"),
        (" ", "it sets nothing"),
    ],
)
def test_a_variant_that_is_no_setting_is_told_before_anything_runs(
    word: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tune.main([word])
    assert told in capsys.readouterr().err


def test_a_trial_is_a_single_round_of_ours_with_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    configs: list[Config] = []
    result = single("alignd", "ours", harm=0.5)

    def play_single(ground: Ground, work: partial[Played], seed: int) -> object:
        asked.append((ground.name, seed))
        configs.append(work.keywords["config"])
        return result

    monkeypatch.setattr(run, "play_single", play_single)
    for variant in (DEFAULT, VARIANT):
        tune.run_trial(Trial("demo", variant, 4, tmp_path / "out.json"))
    assert asked == [("demo", 4)] * 2
    assert [one.derive.safety.max_steps for one in configs] == [Config().derive.safety.max_steps, 90]
    assert [one.derive.retain.wrapped_weight for one in configs] == [Config().derive.retain.wrapped_weight, 7.5]
    assert json.loads((tmp_path / "out.json").read_text()) == single_numbers(result)
