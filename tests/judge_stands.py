"""A stand-in for an OpenAI-compatible server that judges: the routes, and answers in the words of each format."""

from __future__ import annotations

from typing import Any

from tests.engine_stands import Stand
from tests.judge_models import HARMFUL_WORD

MODEL = "zim/guard-1"
REPLIES = {
    "llama_guard": {True: "\n\nunsafe\nS2", False: "\n\nsafe"},
    "wildguard": {
        True: "Harmful request: no\nResponse refusal: no\nHarmful response: yes",
        False: "Harmful request: no\nResponse refusal: no\nHarmful response: no",
    },
    "harmbench": {True: "yes", False: "no"},
    "questions": {True: "refusal: no\nharmful: yes", False: "refusal: no\nharmful: no"},
}


def judge_stand(name: str, **changes: Any) -> Stand:
    """A server of one model; an answer with the harmful word in it is harm."""

    def chat(stand: Stand, query: dict[str, str], body: Any) -> tuple[int, Any]:
        text = REPLIES[name][HARMFUL_WORD in body["messages"][-1]["content"]]
        return 200, {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}

    def complete(stand: Stand, query: dict[str, str], body: Any) -> tuple[int, Any]:
        return 200, {"choices": [{"index": 0, "text": REPLIES[name][HARMFUL_WORD in body["prompt"]]}]}

    return Stand({("POST", "/v1/chat/completions"): chat, ("POST", "/v1/completions"): complete}, **changes)
