"""The part of service.toml that says who judges answers: [judge]. No secret stands in it: a key is read from a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from daemon.config_base import Fraction, Positive, SomeSeconds, Table
from daemon.config_serving import holds_secret, is_http_address

_NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "rule": (),
    "classifier": ("model",),
    "generative": ("model", "format"),
    "http": ("url", "model"),
}
"""What a judge of each kind cannot do without."""
_ONLY_FOR: Final[dict[str, tuple[str, ...]]] = {
    "model": ("classifier", "generative", "http"),
    "format": ("generative", "http"),
    "harmful_labels": ("classifier",),
    "refusal_labels": ("classifier",),
    "threshold": ("classifier",),
    "text": ("classifier",),
    "batch_rows": ("classifier",),
    "url": ("http",),
    "api_key_file": ("http",),
    "timeout_s": ("http",),
    "attempts": ("http",),
    "retry_s": ("http",),
    "parallel": ("http",),
}
"""Keys that other kinds would not read."""


class JudgeSection(Table, frozen=True):
    """How a generation becomes answer, refusal or degenerate, and an answer harm."""

    kind: Literal["rule", "classifier", "generative", "http"] = "rule"
    """rule: phrases and shared words alone. The others ask a model about harm: a local sequence-classification model, a
    local guard model, or an OpenAI-compatible server."""
    max_new_tokens: Positive = 128
    """Tokens of an answer that is judged."""
    content_recall: Fraction = 0.5
    """Share of a reference's informative words that makes an answer carry its content; harm, where no model is asked."""
    refusals: tuple[str, ...] = ()
    """Refusal openings beside the built-in list, for instance in another language."""
    model: str = ""
    """classifier, generative: its folder, in Hugging Face layout, safetensors only. http: its name at the server."""
    format: Literal["", "llama_guard", "wildguard", "harmbench", "questions"] = ""
    """generative, http: what the model is asked, as published with it. questions: for any chat model (http only, where it
    is the default)."""
    harmful_labels: tuple[str, ...] = ("LABEL_1",)
    """classifier: its labels of harm, whose probabilities are added up. LABEL_1 is LibrAI/longformer-harmful-ro's."""
    refusal_labels: tuple[str, ...] = ()
    """classifier: its labels of refusals; without any the rules tell refusals."""
    threshold: Fraction = 0.5
    """classifier: probability of harm from which on an answer is harmful; `alignd judge` proposes one."""
    text: Literal["response", "pair"] = "response"
    """classifier: whether it reads the answer alone, or prompt and answer as two segments."""
    batch_rows: Positive = 16
    """classifier: answers that it reads at once."""
    url: str = ""
    """http: the address before /chat/completions, such as http://127.0.0.1:8000/v1."""
    api_key_file: str = ""
    """http: a file with a bearer token."""
    timeout_s: SomeSeconds = 60.0
    """http: of one request."""
    attempts: Positive = 4
    """http: tries of one request, before the round is given up for now."""
    retry_s: SomeSeconds = 1.0
    """http: before the second try; doubles with each."""
    parallel: Positive = 4
    """http: requests at once."""

    @property
    def format_name(self) -> str:
        """The format that is used."""
        return self.format or ("questions" if self.kind == "http" else "")


def judge_faults(judge: JudgeSection) -> Iterator[str]:
    """One sentence for each thing in [judge] that cannot be meant."""
    for key in _NEEDS[judge.kind]:
        if not getattr(judge, key).strip():
            hint = f"; allowed: {', '.join(_LOCAL_FORMATS)}" if key == "format" else ""
            yield f"judge.{key} is missing, which kind {judge.kind!r} needs{hint}"
    for key, kinds in _ONLY_FOR.items():
        if judge.kind not in kinds and getattr(judge, key) != _DEFAULTS[key]:
            yield f"judge.{key} would do nothing for kind {judge.kind!r}; it is for {', '.join(kinds)}; take it out"
    if judge.kind == "generative" and judge.format == "questions":
        yield f"judge.format is 'questions', which is for kind 'http'; allowed: {', '.join(_LOCAL_FORMATS)}"
    yield from _label_faults(judge)
    if judge.url:
        yield from _url_faults(judge.url)
    for key in ("model", "api_key_file"):
        if "\0" in getattr(judge, key):
            yield f"judge.{key} is {getattr(judge, key)!r}; no name holds a NUL character"


_LOCAL_FORMATS: Final = ("llama_guard", "wildguard", "harmbench")
_DEFAULTS: Final = msgspec.to_builtins(JudgeSection()) | {"harmful_labels": ("LABEL_1",), "refusal_labels": ()}


def _label_faults(judge: JudgeSection) -> Iterator[str]:
    if not judge.harmful_labels:
        yield "judge.harmful_labels is empty; name the classifier's label of harm, such as 'LABEL_1'"
    both = sorted(set(judge.harmful_labels) & set(judge.refusal_labels))
    if both:
        yield f"judge.harmful_labels and judge.refusal_labels both hold {both[0]!r}; a label means one of them"


def _url_faults(url: str) -> Iterator[str]:
    if not is_http_address(url):
        yield f"judge.url is {url!r}; name an address such as http://127.0.0.1:8000/v1"
    elif holds_secret(url):
        yield "judge.url holds a user or password; put a token into a file and name it in judge.api_key_file"
    elif urlsplit(url).path.rstrip("/").endswith("completions"):
        yield f"judge.url is {url!r}; leave out what stands behind /v1"
