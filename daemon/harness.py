"""Tasks of lm-evaluation-harness: scored on a version, or taken over as utility probes. An optional extra.

A task is a YAML file, of the harness or of a folder of one's own, and may name Python code that is run: a folder of tasks
is trusted as alignd's own code is. Nothing is loaded from the network.

Source: EleutherAI/lm-evaluation-harness 0.4: `simple_evaluate`, `TaskManager`, `ConfigurableTask.doc_to_text`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

INSTALL_HINT: Final = "install it beside alignd: `pip install 'alignd[harness]'`"
_OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
_MULTIPLE_CHOICE: Final = "multiple_choice"


class HarnessError(Exception):
    """The harness is not there, or a task cannot be used; the message holds none of its questions."""


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task on one version."""

    task: str
    metric: str
    """With its filter, where that is not the only one: `exact_match,strict`."""
    value: float
    stderr: float | None
    num_docs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Asked:
    """Which tasks, and how."""

    tasks: Sequence[str]
    include: Path | None = None
    """A folder of YAML files beside those of the harness."""
    limit: int | None = None
    """Documents of each task at most; the first ones."""
    is_chat: bool = False
    """Questions are put into the model's chat template."""


def score(model: Any, tokenizer: Any, asked: Asked, *, batch_rows: int = 8) -> list[TaskScore]:
    """What the harness measures of a model; greedy, with its own fixed seeds.

    Raises:
        HarnessError: it is not installed, or a task cannot be used.
    """
    manager = _manager(asked)
    with _understood(asked):
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_rows),
            tasks=list(asked.tasks),
            task_manager=manager,
            limit=asked.limit,
            apply_chat_template=asked.is_chat,
            bootstrap_iters=0,
            log_samples=False,
        )
    return list(_scores(found))


def _scores(found: Mapping[str, Any]) -> Iterator[TaskScore]:
    for task, metrics in found["results"].items():
        num_docs = int(found.get("n-samples", {}).get(task, {}).get("effective", 0))
        for key, value in metrics.items():
            name, _, how = key.partition(",")
            if not how or name.endswith("_stderr") or isinstance(value, str):
                continue
            stderr = metrics.get(f"{name}_stderr,{how}")
            metric = name if how == "none" else key
            yield TaskScore(task, metric, float(value), stderr if isinstance(stderr, float) else None, num_docs)


def probe_rows(asked: Asked) -> list[dict[str, Any]]:
    """The tasks' documents as utility probes: question and right answer, the task's name as category.

    Raises:
        HarnessError: as `score`; also where a task's answers are no text.
    """
    manager = _manager(asked)
    with _understood(asked):
        from lm_eval.tasks import get_task_dict

        tasks = get_task_dict(list(asked.tasks), manager)
    return [row for name, task in sorted(_flat(tasks), key=lambda found: found[0]) for row in _rows(name, task, asked)]


def _flat(tasks: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Each task by its name, groups taken apart."""
    for name, task in tasks.items():
        if isinstance(task, Mapping):
            yield from _flat(task)
        else:
            yield str(name), task


def _rows(name: str, task: Any, asked: Asked) -> Iterator[dict[str, Any]]:
    with _understood(asked):
        docs = list(task.eval_docs)[: asked.limit]
        pairs = [(str(task.doc_to_text(doc)), _answer(task, doc)) for doc in docs]
    for prompt, answer in pairs:
        if answer is None:
            raise HarnessError(f"task {name}: its right answers are no text, so that they cannot be probes")
        if prompt.strip() and answer.strip():
            yield {"prompt": prompt.strip(), "response": answer.strip(), "category": name}


def _answer(task: Any, doc: Any) -> str | None:
    """The right answer as text: the choice that is right, or the target itself; None where it is neither."""
    target = task.doc_to_target(doc)
    if task.OUTPUT_TYPE == _MULTIPLE_CHOICE and isinstance(target, int):
        choices = task.doc_to_choice(doc)
        return str(choices[target]) if 0 <= target < len(choices) else None
    if isinstance(target, list) and target and isinstance(target[0], str):
        return str(target[0])
    return target if isinstance(target, str) else None


def _manager(asked: Asked) -> Any:
    os.environ.update(_OFFLINE)  # before `datasets` is imported, which reads them once
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as err:
        raise HarnessError(f"lm-evaluation-harness is not installed: {err}; {INSTALL_HINT}") from err
    if asked.include is not None and not asked.include.is_dir():
        raise HarnessError(f"{asked.include} is no folder; name one with the tasks' YAML files")
    own = str(asked.include) if asked.include else None
    manager = TaskManager(include_path=own, include_defaults=own is None)
    if own is not None and not all(manager.match_tasks([name]) for name in asked.tasks):
        manager = TaskManager(include_path=own)  # the harness's own take many seconds to list
    unknown = [name for name in asked.tasks if not manager.match_tasks([name])]
    if unknown:
        raise HarnessError(f"the harness knows no task {unknown[0]!r}; `lm-eval ls tasks` lists its own")
    return manager


@contextmanager
def _understood(asked: Asked) -> Iterator[None]:
    """Whatever a task raises, as an error that quotes nothing of it."""
    try:
        yield
    except HarnessError:
        raise
    except Exception as err:
        hint = "its data set must be on this machine, as local files or in the cache of `datasets`"
        what = f"task(s) {', '.join(asked.tasks)} cannot be run: {type(err).__name__}"
        raise HarnessError(f"{what}; {hint}") from err
