"""Everything that is compared, by name: ours, the paper's, the ablations of ours, and the baselines."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from benchmarks.method.baselines import BASELINES, play_baseline
from benchmarks.method.play import Played, Task, play_round
from daemon.config import Config, parse

OURS = "alignd"
PAPER = "SafePatching as published"
NO_LIMIT_S = 1e9

Settings = dict[str, Any]

_SEARCHED_SCORES = {"mask": "difference", "search": {"top_fractions": [0.3, 0.1, 0.6]}}
ABLATIONS: dict[str, Settings] = {
    "order: independent": {"derive": {"order": "independent"}},
    "objective: ascent": {"derive": {"safety": {"objective": "ascent", "stop_loss": 3.0}}},
    "objective: simnpo": {"derive": {"safety": {"objective": "simnpo", "npo_beta": 4.5}}},
    "back end: full": {"derive": {"backend": "full"}},
    "back end: full, cut to 10 %": {"derive": {"backend": "full"}, "merge": {"search": {"top_fractions": [0.1]}}},
    "back end: lora": {
        "derive": {"backend": "lora", "safety": {"learning_rate": 2e-3}, "over_safety": {"learning_rate": 2e-3}}
    },
    "score: tuned, difference sets": {"derive": {"backend": "full"}, "merge": {"score": "tuned", **_SEARCHED_SCORES}},
    "score: delta, difference sets": {"derive": {"backend": "full"}, "merge": {"score": "delta", **_SEARCHED_SCORES}},
    "retention: p = 0.5": {"merge": {"search": {"retention_rates": [0.5]}}},
    "search: off": {"merge": {"search": {"trials": 1}}},
    "KL: off": {"derive": {"retain": {"weight": 0.0}}},
    "own answers and references: off": {"derive": {"retain": {"own_answers_weight": 0.0, "references_weight": 0.0}}},
    "kept refusals: off": {"derive": {"retain": {"refusals_weight": 0.0}}},
    "own refusals not preferred": {"derive": {"safety": {"refusal_weight": 0.0}}},
}
CONTINUAL: dict[str, Settings] = {
    OURS: {},
    "masks: opposed": {"merge": {"accumulate": "opposed"}},
    "masks: protect": {"merge": {"accumulate": "protect"}},
}


def families() -> dict[str, str]:
    """The family of every method of a single round."""
    return (
        dict.fromkeys(BASELINES, "baseline") | {PAPER: "baseline", OURS: "ours"} | dict.fromkeys(ABLATIONS, "ablation")
    )


def settings_of(name: str) -> Config:
    """The configuration that a method runs with."""
    settings = {"preset": "safepatching"} if name == PAPER else ABLATIONS.get(name) or CONTINUAL.get(name) or {}
    config = parse(settings)
    search = replace(config.merge.search, max_s=NO_LIMIT_S)  # how busy the machine is must not decide what is tried
    return replace(config, merge=replace(config.merge, search=search))


def play(task: Task, name: str) -> Played:
    """One round by a method."""
    config = settings_of(name)
    return play_baseline(task, config, name) if name in BASELINES else play_round(task, config)
