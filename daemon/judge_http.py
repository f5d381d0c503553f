"""An OpenAI-compatible server as a judge. What is judged goes to that server and nowhere else: into no log and no error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from daemon.config_judge import JudgeSection
from daemon.engines import EngineError, Surroundings
from daemon.http_calls import CallError, Client
from patches.errors import JudgeError
from patches.judge import INVENTED, Answered
from patches.judge_formats import FORMATS, GuardFormat, Opinion

_RETRIED: Final = (None, 408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses that may be others in a moment; None: no answer at all."""
_NETWORK_HINT: Final = "start it, or mend [judge] url; under systemd the unit needs a network: `alignd unit --network`"


@dataclass(frozen=True)
class HttpJudge:
    """A server that is asked about each answer by itself."""

    client: Client
    settings: JudgeSection
    format: GuardFormat
    identity: str
    sleep: Callable[[float], None] = time.sleep

    @property
    def says_refusal(self) -> bool:
        """Whether its format asks for refusals."""
        return self.format.says_refusal

    def opinions(self, answers: Sequence[Answered]) -> list[Opinion]:
        """One opinion an answer, in order; several requests at once.

        Raises:
            JudgeError: the server cannot be reached, refuses, or answers something else than a completion.
        """
        with ThreadPoolExecutor(self.settings.parallel, thread_name_prefix="judge") as pool:
            try:
                waiting = [pool.submit(self._ask, answer) for answer in answers]
                return [found.result() for found in waiting]
            except BaseException:  # whatever it was: the answers still in the queue are for nobody
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def check(self) -> str:
        """One sentence about the server, after it judged an invented answer. Raises JudgeError where it cannot."""
        if self._ask(INVENTED).is_harmful is None:
            raise JudgeError(
                f"the judge at {self._where} replies, and not as format {self.format.name!r} is read; "
                f"is [judge] format that of {self.settings.model!r}?"
            )
        return f"{self._where} judges as {self.settings.model}"

    @property
    def _where(self) -> str:
        parts = urlsplit(self.settings.url)
        return f"{parts.scheme}://{parts.netloc}"

    def _ask(self, answer: Answered) -> Opinion:
        path, body = self._request(answer)
        said = self._call(lambda: self.client.post(path, body, timeout_s=self.settings.timeout_s).json())
        return self.format.read(self._text(said))

    def _request(self, answer: Answered) -> tuple[str, dict[str, Any]]:
        usual = {"model": self.settings.model, "temperature": 0, "max_tokens": self.format.max_new_tokens}
        if self.format.name == "llama_guard":  # the server puts the conversation into the guard's own template
            turns = [{"role": "user", "content": answer.asked}, {"role": "assistant", "content": answer.text}]
            return "/chat/completions", {**usual, "messages": turns}
        prompt = self.format.prompt(answer.asked, answer.text)
        if self.format.is_chat:
            return "/chat/completions", {**usual, "messages": [{"role": "user", "content": prompt}]}
        return "/completions", {**usual, "prompt": prompt}

    def _text(self, said: Any) -> str:
        try:
            choice = said["choices"][0]
            text = choice["message"]["content"] if self.format.is_chat else choice["text"]
        except (KeyError, IndexError, TypeError):
            raise JudgeError(f"the judge at {self._where} answers something else than a completion") from None
        return text if isinstance(text, str) else ""

    def _call(self, work: Callable[[], Any]) -> Any:
        """The answer to one request, asked again while the server is away or busy. Raises JudgeError."""
        for attempt in range(1, self.settings.attempts + 1):
            try:
                return work()
            except CallError as err:
                if err.status in _RETRIED and attempt < self.settings.attempts:
                    self.sleep(self.settings.retry_s * 2 ** (attempt - 1))
                    continue
                # the server's own words may quote what it was sent, so they are left out
                raise self._fault(err, attempt) from None
        raise AssertionError("attempts is at least 1")

    def _fault(self, err: CallError, attempt: int) -> JudgeError:
        tried = f" ({attempt} tries)" if attempt > 1 else ""
        if err.status is None:
            what = "gives no whole answer in time" if err.reached else "cannot be reached"
            return JudgeError(f"the judge at {self._where} {what}{tried}; {_NETWORK_HINT}")
        if err.status == 404:
            return JudgeError(
                f"the judge at {self._where} answers 404: no such route or model; see [judge] url and model"
            )
        if 200 <= err.status < 300:
            return JudgeError(f"the judge at {self._where} answers no JSON; is [judge] url that of its /v1?")
        hint = "; see [judge] api_key_file" if err.status in (401, 403) else ""
        return JudgeError(f"the judge at {self._where} answers {err.status}{tried}{hint}")


def open_http_judge(settings: JudgeSection, home: Path, *, identity: str) -> HttpJudge:
    """The server of the settings, not asked yet. Raises JudgeError: the key's file cannot be read."""
    headers = {}
    if settings.api_key_file:
        try:
            headers["Authorization"] = f"Bearer {Surroundings(home, threading.Event()).secret(settings.api_key_file)}"
        except EngineError as err:
            raise JudgeError(f"[judge] api_key_file: {err}") from err
    return HttpJudge(Client(settings.url.rstrip("/"), headers), settings, FORMATS[settings.format_name], identity)
