"""A server as judge: the requests word for word, what is tried again, and errors that quote nothing."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.config_judge import JudgeSection
from daemon.http_calls import Client
from daemon.judge_http import HttpJudge, open_http_judge
from patches.errors import JudgeError
from patches.judge import Answered
from patches.judge_formats import FORMATS
from tests.engine_stands import Stand
from tests.judge_models import HARMFUL_WORD
from tests.judge_stands import MODEL, REPLIES, judge_stand
from tests.tiny_model import asked

SECRET = "quibblefrotz"
HARM, PLAIN = f"take three {HARMFUL_WORD}", f"take three zims {SECRET}"


@pytest.fixture
def stand() -> Iterator[Stand]:
    with judge_stand("questions") as found:
        yield found


def judge_of(stand: Stand, name: str = "questions", **changes: Any) -> HttpJudge:
    usual: dict[str, Any] = {"kind": "http", "model": MODEL, "url": f"{stand.url}/v1", "format": name, "retry_s": 0.01}
    settings = JudgeSection(**(usual | changes))
    return open_http_judge(settings, Path("/nowhere"), identity="http guard 1")


def said(*texts: str) -> list[Answered]:
    return [Answered(({"role": "system", "content": "grolt"}, *asked("may I florp")), text) for text in texts]


def fault_of(judge: HttpJudge) -> str:
    with pytest.raises(JudgeError) as found:
        judge.opinions(said(PLAIN))
    assert SECRET not in str(found.value) and found.value.__cause__ is None
    return str(found.value)


@pytest.mark.parametrize("name", REPLIES)
def test_each_answer_is_asked_about_and_read_in_order(name: str) -> None:
    with judge_stand(name) as stand:
        texts = [HARM, PLAIN, HARM, PLAIN, PLAIN, HARM]
        found = judge_of(stand, name, parallel=3).opinions(said(*texts))
    assert [opinion.is_harmful for opinion in found] == [text == HARM for text in texts]
    assert all((opinion.is_refusal is None) != FORMATS[name].says_refusal for opinion in found)


def body_of(name: str) -> tuple[str, Any]:
    with judge_stand(name) as stand:
        judge_of(stand, name).opinions(said(PLAIN))
        ((_, path, body),) = stand.calls
    return path, body


def test_a_llama_guard_gets_the_conversation_and_templates_it_itself() -> None:
    turns = [{"role": "user", "content": "may I florp"}, {"role": "assistant", "content": PLAIN}]
    expected = {"model": MODEL, "temperature": 0, "max_tokens": 20, "messages": turns}
    assert body_of("llama_guard") == ("/v1/chat/completions", expected)


@pytest.mark.parametrize(("name", "most"), [("wildguard", 128), ("harmbench", 1)])
def test_the_others_get_the_published_text_as_it_is(name: str, most: int) -> None:
    prompt = FORMATS[name].prompt("may I florp", PLAIN)
    assert body_of(name) == (
        "/v1/completions",
        {"model": MODEL, "temperature": 0, "max_tokens": most, "prompt": prompt},
    )


def test_any_chat_model_gets_the_questions_as_one_turn() -> None:
    path, body = body_of("questions")
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": FORMATS["questions"].prompt("may I florp", PLAIN)}]


def test_a_token_is_read_from_its_file_and_sent(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sesame\n")
    with judge_stand("questions", api_key="sesame") as stand:
        settings = JudgeSection(kind="http", model=MODEL, url=f"{stand.url}/v1", api_key_file="key")
        assert open_http_judge(settings, tmp_path, identity="").opinions(said(HARM))[0].is_harmful
        with pytest.raises(JudgeError, match=r"answers 401; see \[judge\] api_key_file"):
            judge_of(stand).opinions(said(HARM))
    with pytest.raises(JudgeError, match=r"api_key_file: .*gone cannot be read"):
        open_http_judge(
            JudgeSection(kind="http", model=MODEL, url="http://x/v1", api_key_file="gone"), tmp_path, identity=""
        )


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again_with_growing_pauses(stand: Stand, status: int) -> None:
    stand.fail("/v1/chat/completions", (status, {}), (status, {}))
    pauses: list[float] = []
    judge = judge_of(stand, retry_s=2.0)
    judge = HttpJudge(judge.client, judge.settings, judge.format, judge.identity, sleep=pauses.append)
    assert judge.opinions(said(HARM))[0].is_harmful
    assert pauses == [2.0, 4.0] and len(stand.calls) == 3


def test_a_server_that_stays_busy_is_given_up_after_the_configured_tries(stand: Stand) -> None:
    stand.fail("/v1/chat/completions", *[(503, {"error": SECRET})] * 3)
    assert re.fullmatch(
        r"the judge at http://127.0.0.1:\d+ answers 503 \(3 tries\)", fault_of(judge_of(stand, attempts=3))
    )
    assert len(stand.calls) == 3


@pytest.mark.parametrize(
    ("status", "value", "words"),
    [
        (400, {"error": {"message": f"too long: {SECRET}"}}, "answers 400"),
        (404, {"error": {"message": "The model `zim` does not exist."}}, "answers 404: no such route or model"),
        (200, f"<html>{SECRET}".encode(), "answers no JSON; is [judge] url that of its /v1?"),
        (200, {"choices": []}, "answers something else than a completion"),
        (200, [SECRET], "answers something else than a completion"),
    ],
)
def test_what_no_second_try_mends_is_told_at_once_and_quotes_nothing(
    stand: Stand, status: int, value: Any, words: str
) -> None:
    stand.fail("/v1/chat/completions", (status, value))
    assert words in fault_of(judge_of(stand))
    assert len(stand.calls) == 1


def test_a_reply_without_text_cannot_be_read(stand: Stand) -> None:
    stand.fail("/v1/chat/completions", (200, {"choices": [{"message": {"content": None}}]}))
    assert judge_of(stand).opinions(said(HARM))[0].is_harmful is None


def test_a_slow_answer_is_cut_off_and_tried_again(stand: Stand) -> None:
    stand.fail("/v1/chat/completions", 5.0)
    assert judge_of(stand, timeout_s=0.3).opinions(said(HARM))[0].is_harmful
    stand.fail("/v1/chat/completions", 5.0, 5.0)
    assert "gives no whole answer in time (2 tries)" in fault_of(judge_of(stand, timeout_s=0.3, attempts=2))


def test_a_server_that_is_away_is_named_with_what_to_do(stand: Stand) -> None:
    stand.stop()
    fault = fault_of(judge_of(stand, attempts=2))
    assert f"the judge at http://127.0.0.1:{stand.port} cannot be reached (2 tries)" in fault
    assert "`alignd unit --network`" in fault


def test_several_requests_are_under_way_at_once_and_no_more_than_configured() -> None:
    now, most, lock, gate = 0, 0, threading.Lock(), threading.Barrier(3, timeout=60)

    class Watched(Client):
        def post(self, path: str, value: Any, *, timeout_s: float) -> Any:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            gate.wait()
            with lock:
                now -= 1
            return super().post(path, value, timeout_s=timeout_s)

    with judge_stand("questions") as stand:
        judge = judge_of(stand, parallel=3)
        judge = HttpJudge(Watched(judge.client.url), judge.settings, judge.format, judge.identity)
        assert len(judge.opinions(said(*[PLAIN] * 6))) == 6
    assert most == 3


def test_a_check_judges_an_invented_answer(stand: Stand) -> None:
    assert judge_of(stand).check() == f"{stand.url} judges as {MODEL}"
    assert "brindle" in str(stand.calls) and len(stand.calls) == 1
    stand.fail("/v1/chat/completions", (404, {}))
    with pytest.raises(JudgeError, match="answers 404: no such route or model"):
        judge_of(stand).check()
    stand.fail("/v1/chat/completions", (200, {"choices": [{"message": {"content": "zim"}}]}))
    with pytest.raises(JudgeError, match=f"replies, and not as format 'questions' is read; is .* that of '{MODEL}'"):
        judge_of(stand).check()
    stand.stop()
    with pytest.raises(JudgeError, match="cannot be reached"):
        judge_of(stand, attempts=1).check()


def test_whatever_ends_the_judging_the_answers_in_the_queue_are_not_asked_about(stand: Stand) -> None:
    num = 0

    class Stopped(Client):
        def post(self, path: str, value: Any, *, timeout_s: float) -> Any:
            nonlocal num
            num += 1
            if num == 1:
                raise KeyboardInterrupt
            time.sleep(0.05)
            return super().post(path, value, timeout_s=timeout_s)

    judge = judge_of(stand, parallel=1)
    judge = HttpJudge(Stopped(judge.client.url), judge.settings, judge.format, judge.identity)
    with pytest.raises(KeyboardInterrupt):
        judge.opinions(said(*[PLAIN] * 40))
    assert num < 20
