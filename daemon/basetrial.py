"""Whether a base can be used for real: loaded in a process of its own, and asked one question through its chat template."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from daemon.checks import Check
from daemon.child import CODE_ROOT, worker_env

LIMIT_S: Final = 1800
"""A large model on a slow disk takes its time."""
NAME: Final = "answers"
_NUM_TOKENS: Final = 8
_RAISED: Final = re.compile(r"[\w.]+(Error|Exception): ")
_QUESTION: Final = "How many days has a week?"
_ANSWER: Final = "A week has seven days."
_ADVICE: Final = (
    "take a model that transformers loads as a causal language model; --no-trial makes the home without trying it"
)


def try_out(folder: Path) -> Check:
    """Loads the model of a folder and lets it answer, in a process that gives its memory back."""
    env = worker_env(os.environ, 0) | {"PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "daemon.basetrial", str(folder.absolute())]
    try:
        done = subprocess.run(
            command, env=env, cwd=CODE_ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Check(NAME, "bad", f"it was not loaded within {LIMIT_S} s", _ADVICE)
    if done.returncode < 0:
        advice = "a kill mostly means that memory was short; --no-trial makes the home without trying it"
        return Check(NAME, "bad", f"the process that loaded it was killed by signal {-done.returncode}", advice)
    if done.returncode:
        return Check(NAME, "bad", f"it cannot be used: {_complaint(done.stderr)}", _ADVICE)
    return Check(NAME, "ok", done.stdout.strip())


def _complaint(trace: str) -> str:
    """What a process died of: the line of the exception, which advice of many lines may follow."""
    lines = trace.strip().splitlines() or ["it died without a word"]
    return next((line for line in reversed(lines) if _RAISED.match(line)), lines[-1])


def main() -> int:
    """``python -m daemon.basetrial FOLDER``: says how it went; what is wrong ends it with an exception."""
    import torch

    from patches.chat import encode_row
    from patches.errors import ModelUnsuitableError
    from patches.generate import Generator
    from patches.model import decoder_linears, load_model, load_tokenizer, pick_device

    folder, began = Path(sys.argv[1]), time.monotonic()
    tokenizer = load_tokenizer(folder)
    question = [{"role": "user", "content": _QUESTION}]
    row = encode_row(tokenizer, question, _ANSWER, max_length=512)
    if row is None:
        raise ModelUnsuitableError("the chat template renders no answer behind a question")
    device = pick_device("auto")
    model = load_model(folder, dtype="auto", device=device)
    num_matrices = len(decoder_linears(model))
    logits = model(input_ids=torch.tensor([row.ids], device=device)).logits
    if not torch.isfinite(logits).all():
        raise ModelUnsuitableError("its answer to a question is no number (NaN or infinite)")
    Generator(model, tokenizer, _NUM_TOKENS).answer([question])
    took_s = time.monotonic() - began
    print(f"loaded on {device} in {took_s:.1f} s, {num_matrices} matrices to train, answers through its chat template")
    return 0


if __name__ == "__main__":
    sys.exit(main())
