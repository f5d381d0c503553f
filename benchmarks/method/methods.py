"""Everything that is compared, by name: ours, the paper's, the ablations of ours, and the baselines."""

from __future__ import annotations

from dataclasses import replace as replace_fields
from typing import Any

from msgspec.structs import replace

from benchmarks.method.baselines import BASELINES, play_baseline
from benchmarks.method.play import Played, Task, play_round
from daemon.config import Config, parse

OURS = "alignd"
PAPER = "SafePatching as published"
NO_LIMIT_S = 1e9
PAPER_TRIALS: tuple[tuple[float, float | None], ...] = ((3.0, None), (2.0, 3e-4), (5.0, 1.2e-3))
"""(stop loss of the ascent, learning rate; None = the usual one, 6e-4 at the demo's width)."""

Settings = dict[str, Any]

_SEARCHED_SCORES = {"mask": "difference", "search": {"top_fractions": [0.3, 0.1, 0.6]}}
ABLATIONS: dict[str, Settings] = {
    "order: independent": {"derive": {"order": "independent"}},
    "objective: ascent": {"derive": {"safety": {"objective": "ascent", "stop_loss": 3.0}}},
    "objective: simnpo": {"derive": {"safety": {"objective": "simnpo"}}},
    "back end: full": {"derive": {"backend": "full"}},
    "back end: full, cut to 10 %": {"derive": {"backend": "full"}, "merge": {"search": {"top_fractions": [0.1]}}},
    "back end: lora": {
        "derive": {"backend": "lora", "safety": {"learning_rate": 2e-3}, "over_safety": {"learning_rate": 2e-3}}
    },
    "score: tuned, difference sets": {"derive": {"backend": "full"}, "merge": {"score": "tuned", **_SEARCHED_SCORES}},
    "score: delta, difference sets": {"derive": {"backend": "full"}, "merge": {"score": "delta", **_SEARCHED_SCORES}},
    "retention: p = 0.5": {"merge": {"search": {"retention_rates": [0.5]}}},
    "search: off": {"merge": {"search": {"trials": 1}}},
    "safety patch: all of it": {"merge": {"search": {"alphas": [1.0]}}},
    "KL: off": {"derive": {"retain": {"weight": 0.0}}},
    "own answers and references: off": {"derive": {"retain": {"own_answers_weight": 0.0, "references_weight": 0.0}}},
    "kept refusals: off": {"derive": {"retain": {"refusals_weight": 0.0, "batch_refusals_weight": 0.0}}},
    "wrapped rows: off": {"derive": {"retain": {"wrapped_rows": 0}}},
    "recoveries: off": {"derive": {"safety": {"recovery_weight": 0.0}}},
    "own refusals not preferred": {"derive": {"safety": {"refusal_weight": 0.0}}},
    "standing harm probes: off": {"derive": {"retain": {"standing_rows": 0}}},
}
CONTINUAL: dict[str, Settings] = {
    OURS: {},
    "consolidation: off": {"derive": {"consolidate_every": 0}},
    "standing harm probes: off": ABLATIONS["standing harm probes: off"],
    "repairs: not searched": {"merge": {"search": {"repair_below": 0.0}}},
    "masks: opposed": {"merge": {"accumulate": "opposed"}},
    "masks: protect": {"merge": {"accumulate": "protect"}},
}


def families() -> dict[str, str]:
    """The family of every method of a single round."""
    return (
        dict.fromkeys(BASELINES, "baseline") | {PAPER: "baseline", OURS: "ours"} | dict.fromkeys(ABLATIONS, "ablation")
    )


def settings_of(name: str, changes: Settings | None = None) -> Config:
    """The configuration that a method runs with."""
    settings = {"preset": "safepatching"} if name == PAPER else ABLATIONS.get(name) or CONTINUAL.get(name) or {}
    config = parse(settings | (changes or {}))
    search = replace(config.merge.search, max_s=NO_LIMIT_S)  # how busy the machine is must not decide what is tried
    return replace(config, merge=replace(config.merge, search=search))


def paper_settings() -> list[Config]:
    """The paper's method at several learning rates and stop losses: its own are not public, so ours must not stand alone."""
    found = []
    for stop_loss, rate in PAPER_TRIALS:
        training: Settings = {} if rate is None else {"learning_rate": rate}
        safety = {"stop_loss": stop_loss, **training}
        found.append(settings_of(PAPER, {"derive": {"safety": safety, "over_safety": training}}))
    return found


def play(task: Task, name: str) -> Played:
    """One round by a method."""
    if name == PAPER:
        played = [play_round(task, config) for config in paper_settings()]
        best = max(played, key=lambda one: float(one.steps["search"]["winner"]["score"]))
        return replace_fields(best, train_s=sum(one.train_s for one in played))
    config = settings_of(name)
    return play_baseline(task, config, name) if name in BASELINES else play_round(task, config)
