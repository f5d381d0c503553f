"""Replicas are brought to the version in service, whatever they do meanwhile; against stand-ins of each interface."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from daemon import config as settings
from daemon.engines import Surroundings
from daemon.engines_local import secret_bytes
from daemon.job import Workshop
from daemon.serving import Serving
from daemon.wakeup import Wakeup
from policies.handover import Replica
from state import gc
from state.store import Store
from tests import engine_stands as stands
from tests.engine_stands import Stand
from tests.state_world import NOW, make_store, make_version


class World:
    """A home with v0, v1 and v2, and its replicas, without a service around them."""

    def __init__(self, tmp_path: Path) -> None:
        self.store = make_store(tmp_path)
        for seed in (1, 2):
            make_version(self.store, seed)
        self.home = self.store.home
        self._wakeup = Wakeup()
        self._shop: Workshop | None = None
        self.serving: Serving | None = None

    def replicas(self, *tables: dict[str, Any], **handover: Any) -> Serving:
        """A new supervisor's view of these replicas; whatever was told before counts on."""
        quick = {"retry_s": 0.05, "max_retry_s": 0.2, "check_s": 3600.0, **handover}
        named = [{"name": f"r{i}", **table} for i, table in enumerate(tables)]
        values = {"serving": named, "handover": quick}
        config = settings.parse(values)
        self._shop = Workshop(self.home, self.store, config, lambda: datetime.now(UTC), self._wakeup.set, _no_worker)
        self.serving = Serving(self._shop)
        return self.serving

    def until(self, condition: Callable[[Serving], bool], timeout_s: float = 25.0) -> list[Replica]:
        """Ticks until it holds."""
        assert self.serving is not None
        end = time.monotonic() + timeout_s
        self.serving.tick()
        while not condition(self.serving):
            assert time.monotonic() < end, [(r.state, r.observed, r.error) for r in self.serving.replicas]
            self._wakeup.wait(0.02)
            self.serving.tick()
        return self.serving.replicas

    def settled(self) -> list[Replica]:
        return self.until(lambda serving: not serving.is_busy())

    def in_sync(self) -> list[Replica]:
        return self.until(lambda serving: all(r.state == "in_sync" for r in serving.replicas))

    def folder(self, version: str) -> str:
        return str(self.home / "models" / version)

    def rollback(self) -> None:
        self.store.rollback(reason="bad", actor="tester", now=NOW)


def _no_worker(kind: str, name: str) -> list[str]:
    raise AssertionError(kind)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    if made.serving is not None:
        made.serving.stop()
    made.store.close()


def _golden(world: World, *rows: dict[str, str]) -> dict[str, Any]:
    (world.home / "golden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or ({"prompt": "Hm?"},)))
    return {"golden": "golden.jsonl", "timeout_s": 0.5}


def test_vllm_is_paused_reloaded_labelled_and_resumed_in_this_order(world: World) -> None:
    with stands.vllm() as engine:
        world.replicas({"kind": "vllm", "url": engine.url, "timeout_s": 5, "verify": _golden(world)})
        (replica,) = world.in_sync()
        assert (replica.observed, replica.error) == (2, "")
        assert engine.paths() == [
            "GET /weight_info",
            "POST /pause?mode=wait",
            "POST /collective_rpc",
            "POST /reset_prefix_cache",
            "POST /update_weight_version",
            "POST /resume",
            "GET /weight_info",
            "GET /v1/models",
            "POST /v1/chat/completions",
        ]
        (rpc,) = [body for _, path, body in engine.calls if path == "/collective_rpc"]
        assert rpc == {"method": "reload_weights", "kwargs": {"weights_path": world.folder("v2")}, "timeout": 5}
        assert (engine.label, engine.is_paused) == ("v2", False)


def test_an_engine_that_has_the_label_already_is_not_loaded_again(world: World) -> None:
    with stands.vllm(label="v2", folder=world.folder("v2")) as engine:
        world.replicas({"kind": "vllm", "url": engine.url})
        world.in_sync()
        assert engine.paths() == ["GET /weight_info", "GET /weight_info"]


def test_a_rollback_reaches_all_replicas_at_once_and_an_upgrade_one_after_the_other(world: World) -> None:
    with stands.sglang() as first, stands.sglang() as second:
        for engine in (first, second):
            engine.fail("/update_weights_from_disk", 0.3)
        world.replicas(*({"kind": "sglang", "url": engine.url} for engine in (first, second)))
        world.until(lambda serving: serving.replicas[0].sending is not None)
        assert not second.calls
        world.in_sync()
        for engine in (first, second):
            engine.fail("/update_weights_from_disk", 0.3)
        world.rollback()
        world.until(lambda serving: all(replica.sending is not None for replica in serving.replicas))
        world.in_sync()
        assert (first.label, second.label) == ("v1", "v1")


def test_sglang_is_continued_whatever_happens(world: World) -> None:
    with stands.sglang() as engine:
        engine.fail("/update_weights_from_disk", (500, {"message": "boom"}))
        world.replicas({"kind": "sglang", "url": engine.url, "pause": "abort"})
        world.in_sync()
        paths = engine.paths()
        assert paths.count("POST /pause_generation") == paths.count("POST /continue_generation") == 2
        assert [body for _, path, body in engine.calls if path == "/pause_generation"] == [{"mode": "abort"}] * 2
        update = next(body for _, path, body in engine.calls if path == "/update_weights_from_disk")
        assert (update["weight_version"], update["model_path"]) == ("v2", world.folder("v2"))
        assert not engine.is_paused


def test_a_version_that_fails_its_golden_prompts_gives_way_to_the_old_one(world: World) -> None:
    verify = _golden(world, {"prompt": "Hm?", "never": "zorp v3"})
    with stands.vllm() as engine:
        world.replicas({"kind": "vllm", "url": engine.url, "verify": verify}, attempts=2)
        world.in_sync()
        make_version(world.store, 3)
        (replica,) = world.until(lambda serving: serving.replicas[0].num_spoilt == 2 and not serving.is_busy())
        assert (replica.state, replica.desired, replica.observed) == ("degraded", 3, 2)
        assert replica.error.startswith("golden prompt 1 of 1: the answer holds what it must never hold")
        assert (Path(engine.folder).name, engine.label, engine.is_paused) == ("v2", "v2", False)
        told = len(engine.calls)
        time.sleep(0.3)
        world.settled()
        reloads = [path for path in engine.paths()[told:] if "collective_rpc" in path]
        assert not reloads, "it was given up on"


def test_an_engine_that_forgot_its_weights_is_noticed_by_its_garbage(world: World) -> None:
    with stands.sglang(is_garbage=True) as engine:

        def pretends(stand: Stand, query: dict[str, str], body: Any) -> Any:
            stand.label = "v2"
            return 200, {"success": True, "message": "", "num_paused_requests": 0}

        engine.routes["POST", "/update_weights_from_disk"] = pretends
        world.replicas({"kind": "sglang", "url": engine.url, "verify": _golden(world)})
        (replica,) = world.until(lambda serving: serving.replicas[0].num_spoilt > 0)
        assert "one character again and again" in replica.error


def test_a_failed_reload_of_vllm_puts_the_old_weights_back_before_it_resumes(world: World) -> None:
    with stands.vllm() as engine:
        world.replicas({"kind": "vllm", "url": engine.url, "verify": _golden(world)}, attempts=1)
        world.in_sync()
        make_version(world.store, 3)
        engine.routes["POST", "/collective_rpc"] = _without(engine, world.folder("v3"))
        told = len(engine.calls)
        (replica,) = world.until(lambda serving: serving.replicas[0].num_spoilt == 1 and not serving.is_busy())
        assert (replica.state, replica.observed) == ("degraded", 2)
        paths = engine.paths()[told:]
        assert paths[1:5] == ["POST /pause?mode=wait", "POST /collective_rpc", "POST /collective_rpc", "POST /resume"]
        assert engine.calls[told + 3][2]["kwargs"]["weights_path"] == world.folder("v2")


def _without(engine: Stand, folder: str) -> Callable[..., Any]:
    usual = engine.routes["POST", "/collective_rpc"]

    def rpc(stand: Stand, query: dict[str, str], body: Any) -> Any:
        if body["kwargs"].get("weights_path") == folder:
            stand.folder = ""
            return 500, {"error": {"message": "no such layer", "code": 500}}
        return usual(stand, query, body)

    return rpc


def test_a_blocked_version_is_never_sent_again(world: World) -> None:
    verify = _golden(world, {"prompt": "Hm?", "never": "zorp v1"})
    with stands.vllm() as engine:
        world.replicas({"kind": "vllm", "url": engine.url, "verify": verify}, attempts=1)
        world.in_sync()
        told = len(engine.calls)
        world.rollback()
        (replica,) = world.until(lambda serving: serving.replicas[0].num_spoilt > 1)
        paths = [body["kwargs"]["weights_path"] for _, path, body in engine.calls[told:] if path == "/collective_rpc"]
        assert set(paths) == {world.folder("v1")}
        assert (replica.state, replica.observed) == ("degraded", None)


def test_an_engine_that_is_away_is_told_when_it_is_back(world: World) -> None:
    engine = stands.sglang()
    engine.start()
    engine.stop()
    world.replicas({"kind": "sglang", "url": engine.url})
    (replica,) = world.until(lambda serving: serving.replicas[0].num_failures >= 3)
    assert "cannot be reached" in replica.error and replica.num_spoilt == 0
    with engine:
        world.in_sync()
        assert engine.label == "v2"


def test_an_engine_that_restarted_with_old_weights_is_found_by_the_check(world: World) -> None:
    with stands.sglang() as engine:
        world.replicas({"kind": "sglang", "url": engine.url}, check_s=0.05)
        world.in_sync()
        engine.label, engine.folder = "default", "start"
        world.until(lambda serving: engine.label == "v2")
        world.in_sync()


def test_a_replica_that_hangs_does_not_keep_the_others_waiting_for_long(world: World) -> None:
    with stands.sglang() as hung, stands.sglang() as well:
        hung.fail("/model_info", *[60.0] * 50)
        hung.fail("/update_weights_from_disk", *[60.0] * 50)
        hung.fail("/pause_generation", *[60.0] * 50)
        tables = [{"kind": "sglang", "url": e.url, "timeout_s": 0.2} for e in (hung, well)]
        world.replicas(*tables, parallel=2)
        replicas = world.until(lambda serving: serving.replicas[1].state == "in_sync", timeout_s=15)
        assert replicas[0].observed is None


def test_a_wrong_key_is_told_and_the_right_one_is_sent(world: World) -> None:
    (world.home / "key").write_text("glim\n")
    with stands.vllm(api_key="glim") as engine:
        engine.more["guard_all"] = True
        world.replicas({"kind": "vllm", "url": engine.url, "api_key_file": "key", "verify": _golden(world)})
        world.in_sync()
        (world.home / "key").write_text("wrong\n")
        world.rollback()
        (replica,) = world.until(lambda serving: serving.replicas[0].num_failures > 0)
        assert "answered 401: Unauthorized" in replica.error and "wrong" not in replica.error


def test_vllm_without_its_developer_mode_is_named_as_such(world: World) -> None:
    with Stand({}) as engine:
        world.replicas({"kind": "vllm", "url": engine.url})
        (replica,) = world.until(lambda serving: serving.replicas[0].num_failures > 0)
        assert "VLLM_SERVER_DEV_MODE=1" in replica.error and replica.num_spoilt == 0


def test_vllm_checksums_must_be_those_of_the_first_time(world: World) -> None:
    with stands.vllm() as engine:
        world.replicas({"kind": "vllm", "url": engine.url, "verify": {"checksum": True}}, attempts=1)
        world.in_sync()
        world.rollback()
        (replica,) = world.in_sync()
        assert set(replica.checksums) == {"v1", "v2"}
        world.store.promote("v2", force=True, reason="", actor="tester", now=NOW)
        engine.more["checksum"] = "flipped"
        (replica,) = world.until(lambda serving: serving.replicas[0].num_spoilt > 0)
        assert "not those that it had when it first served v2" in replica.error


def test_llama_cpp_gets_a_new_file_and_is_unloaded_and_loaded(world: World) -> None:
    models = world.home / "gguf"
    models.mkdir()
    convert = [
        sys.executable,
        "-c",
        "import sys; open(sys.argv[2], 'w').write('GGUF ' + sys.argv[1])",
        "{path}",
        "{out}",
    ]
    table = {"kind": "llamacpp", "models_dir": "gguf", "model": "aligned", "convert": convert, "timeout_s": 10}
    with stands.llamacpp(models) as engine:
        world.replicas({**table, "url": engine.url, "verify": _golden(world)})
        world.in_sync()
        world.rollback()
        world.in_sync()
        assert Path(engine.folder).name == "v1"
        assert [path.name for path in models.iterdir()] == ["aligned.gguf"]
        assert [p for p in engine.paths() if p.startswith("POST /models")] == [
            "POST /models/unload",
            "POST /models/load",
        ] * 2


def test_a_conversion_that_fails_changes_nothing(world: World) -> None:
    (world.home / "gguf").mkdir()
    convert = [sys.executable, "-c", "import sys; sys.exit('no room: ' + sys.argv[1])", "{out}"]
    with stands.llamacpp(world.home / "gguf") as engine:
        world.replicas(
            {"kind": "llamacpp", "url": engine.url, "models_dir": "gguf", "model": "aligned", "convert": convert}
        )
        (replica,) = world.until(lambda serving: serving.replicas[0].num_failures > 0)
        assert "exited with 1: no room" in replica.error and replica.num_spoilt == 0
        assert set(engine.paths()) == {"GET /health"} and not list((world.home / "gguf").iterdir())


def test_a_file_that_the_router_cannot_load_counts_as_spoilt(world: World) -> None:
    (world.home / "gguf").mkdir()
    convert = [sys.executable, "-c", "import sys; open(sys.argv[1], 'w').write('junk')", "{out}"]
    with stands.llamacpp(world.home / "gguf") as engine:
        world.replicas(
            {"kind": "llamacpp", "url": engine.url, "models_dir": "gguf", "model": "aligned", "convert": convert}
        )
        (replica,) = world.until(lambda serving: serving.replicas[0].num_failures > 0)
        assert (replica.error, replica.num_spoilt) == ("the router could not load the model", 1)


def test_transformers_forgets_and_loads_and_its_error_event_is_an_error(world: World) -> None:
    verify = {**_golden(world), "model": "{path}"}
    with stands.transformers() as engine:
        engine.more["wanted_model"] = world.folder("v2")
        world.replicas({"kind": "transformers", "url": engine.url, "verify": verify})
        world.in_sync()
        assert engine.paths()[:2] == ["GET /health", "POST /reset"]
    with stands.transformers() as engine:
        world.replicas({"name": "other", "kind": "transformers", "url": engine.url, "path": "/nowhere"})
        (replica,) = world.until(lambda serving: serving.replicas[0].num_failures > 0)
        assert replica.error == "POST /load_model ended with error: no such folder"


def test_a_webhook_is_signed_as_the_specification_says(world: World) -> None:
    secret = "whsec_" + base64.b64encode(b"frobnicate").decode()
    (world.home / "secret").write_text(secret + "\n")
    with stands.webhook() as engine:
        world.replicas({"kind": "webhook", "url": f"{engine.url}/hook", "secret_file": "secret"})
        world.in_sync()
        headers, raw = engine.more["headers"], engine.more["raw"]
    stamp = headers["webhook-timestamp"]
    signed = f"{headers['webhook-id']}.{stamp}.".encode() + raw
    digest = base64.b64encode(hmac.new(b"frobnicate", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{digest}"
    assert abs(int(stamp) - time.time()) < 60
    told = json.loads(raw)
    assert told["type"] == "version.serve"
    assert told["data"] == {
        "replica": "r0", "version": "v2", "path": world.folder("v2"), "previous": None, "action": "publish",
    }  # fmt: skip
    assert secret not in world.store.ledger.note("serving_replicas")


def test_a_repeated_webhook_has_the_same_id_so_that_its_taker_can_tell(world: World) -> None:
    (world.home / "secret").write_text("glim\n")
    with stands.webhook() as engine:
        engine.fail("/hook", (500, {}))
        world.replicas({"kind": "webhook", "url": f"{engine.url}/hook", "secret_file": "secret"})
        world.until(lambda serving: serving.replicas[0].num_failures > 0)
        first = engine.more["headers"]["webhook-id"]
        world.in_sync()
        assert engine.more["headers"]["webhook-id"] == first


@pytest.mark.parametrize("text", ["whsec_!!", "whsec_a"])
def test_a_secret_that_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="no base64"):
        secret_bytes(text)


def test_a_command_is_told_by_arguments_and_environment_and_says_what_is_served(world: World) -> None:
    out = world.home / "told"
    script = (
        "import os, sys; open(sys.argv[1], 'w').write(' '.join([sys.argv[2], *(os.environ[k] for k in "
        "('ALIGND_VERSION', 'ALIGND_PREVIOUS', 'ALIGND_ACTION'))]))"
    )
    table = {
        "kind": "command",
        "command": [sys.executable, "-c", script, str(out), "{path}"],
        "link": "serve-this",
        "verify": {"command": [sys.executable, "-c", f"print(open({str(out)!r}).read().split()[1])"]},
    }
    world.replicas(table)
    world.in_sync()
    assert out.read_text() == f"{world.folder('v2')} v2  publish"
    world.rollback()
    world.in_sync()
    assert out.read_text() == f"{world.folder('v1')} v1 v2 rollback"
    assert (world.home / "serve-this").resolve() == Path(world.folder("v1"))


def test_a_command_that_fails_or_hangs_is_told_with_its_last_line(world: World) -> None:
    fails = {"kind": "command", "command": [sys.executable, "-c", "print('x'); raise SystemExit('no such host')"]}
    hangs = {"kind": "command", "command": [sys.executable, "-c", "import time; time.sleep(60)"], "timeout_s": 0.5}
    missing = {"kind": "command", "command": ["/nowhere/program"]}
    world.replicas(fails, hangs, missing, parallel=3)
    replicas = world.until(lambda serving: all(replica.num_failures for replica in serving.replicas))
    assert [replica.num_spoilt > 0 for replica in replicas] == [True, True, False]
    assert "exited with 1: no such host" in replicas[0].error
    assert "still running" in replicas[1].error
    assert "cannot be run" in replicas[2].error


def test_a_unit_is_restarted_and_must_be_active(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "systemctl"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ -e {tmp_path}/bad ] && echo "Job failed." && exit 1\nexit 0\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    world.replicas({"kind": "systemd", "unit": "vllm@a.service", "link": "unit-model"}, attempts=1)
    world.in_sync()
    assert (tmp_path / "calls").read_text().splitlines() == [
        "--no-ask-password restart vllm@a.service",
        "is-active --quiet vllm@a.service",
    ]
    assert (world.home / "unit-model").resolve() == Path(world.folder("v2"))
    (tmp_path / "bad").touch()
    make_version(world.store, 3)
    (replica,) = world.until(lambda serving: serving.replicas[0].num_unrestored > 0)
    assert "systemctl exited with 1: Job failed." in replica.error and "could not be brought back" in replica.error


def test_a_link_that_is_a_folder_is_left_alone(world: World) -> None:
    (world.home / "precious").mkdir()
    world.replicas({"kind": "command", "command": ["true"], "link": "precious"})
    (replica,) = world.until(lambda serving: serving.replicas[0].num_failures > 0)
    assert "is no link" in replica.error and (world.home / "precious").is_dir()


def test_what_replicas_may_still_read_survives_gc(world: World) -> None:
    with stands.sglang() as engine:
        world.replicas({"kind": "sglang", "url": engine.url})
        world.in_sync()
        engine.fail("/update_weights_from_disk", *[(400, {"success": False, "message": "no"})] * 9)
        for seed in (3, 4, 5):
            make_version(world.store, seed)
        world.until(lambda serving: serving.replicas[0].num_failures > 0)
        gc.run(world.store, keep_materialized=0, now=NOW, actor="tester")
        assert world.store.is_materialized(2) and not world.store.is_materialized(3)


def test_a_replica_taken_out_of_the_settings_is_forgotten(world: World) -> None:
    with stands.sglang() as engine:
        world.replicas({"kind": "sglang", "url": engine.url})
        world.in_sync()
        assert list(world.store.replicas) == ["r0"]
        world.replicas()
        world.settled()
        assert world.store.replicas == {} and world.store.versions_in_replicas == set()


def test_notes_that_cannot_be_read_only_mean_that_all_is_told_again(world: World) -> None:
    for text in ("nonsense", "[]", '{"r0": {"zorp": 1}}', '{"r0": 3}'):
        with world.store.ledger.transaction():
            world.store.ledger.set_note("serving_replicas", text)
            world.store.ledger.set_note("serving_versions", "x")
        with stands.sglang() as engine:
            world.replicas({"kind": "sglang", "url": engine.url})
            world.in_sync()
            assert world.store.versions_in_replicas == {2}


def test_a_hand_over_that_was_broken_off_is_done_again_although_the_label_is_right(world: World) -> None:
    with stands.vllm() as engine:
        engine.fail("/resume", *[(500, {"error": "no"})] * 3)
        world.replicas({"kind": "vllm", "url": engine.url})
        world.until(lambda serving: serving.replicas[0].num_spoilt > 0)
        assert (engine.label, engine.is_paused) == ("v2", True)
        quiet = {"sending": 2, "num_spoilt": 0, "num_failures": 0, "error": "", "is_spoilt": False}
        world.store.note_replicas({"r0": {**world.store.replicas["r0"], **quiet}}, [2])
        world.replicas({"kind": "vllm", "url": engine.url})
        world.in_sync()
        assert not engine.is_paused


def test_a_label_is_not_believed_after_a_failed_reload_also_for_another_version(world: World) -> None:
    with stands.vllm() as engine:
        world.replicas({"kind": "vllm", "url": engine.url}, attempts=1)
        world.in_sync()
        rpc = engine.routes["POST", "/collective_rpc"]
        engine.routes["POST", "/collective_rpc"] = lambda *_: (500, {"error": {"message": "no memory", "code": 500}})
        world.rollback()
        world.until(lambda serving: serving.replicas[0].num_spoilt > 0)
        engine.routes["POST", "/collective_rpc"] = rpc
        told = len(engine.calls)
        world.store.promote("v2", force=True, reason="", actor="tester", now=NOW)
        assert engine.label == "v2"
        world.in_sync()
        assert "POST /collective_rpc" in engine.paths()[told:]


def test_asking_for_a_sync_tells_those_again_that_were_given_up_on(world: World) -> None:
    with stands.sglang() as engine:
        engine.fail("/update_weights_from_disk", *[(400, {"success": False, "message": "no"})] * 2)
        world.replicas({"kind": "sglang", "url": engine.url, "verify": {"timeout_s": 0.2}}, retry_s=3600.0)
        world.until(lambda serving: serving.replicas[0].num_failures > 0)
        world.settled()
        world.store.ask_for_sync(NOW)
        world.until(
            lambda serving: serving.replicas[0].num_failures == 1 and len(engine.faults) == 1 and not serving.is_busy()
        )
        world.store.ask_for_sync(NOW)
        world.in_sync()
        assert world.store.sync_asked == ""


def test_while_a_command_tells_the_replicas_the_service_waits(world: World) -> None:
    from state import lock

    with stands.sglang() as engine:
        with lock.hold(world.store.serving_lock, "alignd serving sync"):
            serving = world.replicas({"kind": "sglang", "url": engine.url})
            for _ in range(5):
                serving.tick()
            assert not engine.calls
            due = serving.next_due()
            assert due is not None and due > datetime.now(UTC)
        world.in_sync()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ('{"prompt": 3}\n', "golden.jsonl:1 is no"),
        ("[]\n", "golden.jsonl:1 is no"),
        ("", "holds 0 prompts"),
        ('{"prompt": "borogove"}\n' * 65, "holds 65 prompts"),
    ],
)
def test_golden_prompts_that_cannot_be_used_are_found_before_anything_changes(
    world: World, rows: str, said: str
) -> None:
    verify = _golden(world)
    (world.home / "golden.jsonl").write_text(rows)
    with stands.vllm() as engine:
        world.replicas({"kind": "vllm", "url": engine.url, "verify": verify})
        (replica,) = world.until(lambda serving: serving.replicas[0].num_failures > 0)
        assert said in replica.error and "borogove" not in replica.error
        assert not engine.calls


def test_no_prompt_and_no_answer_reaches_an_error(world: World) -> None:
    verify = _golden(world, {"prompt": "borogove?", "expect": "mimsy"})
    with stands.vllm() as engine:
        world.replicas({"kind": "vllm", "url": engine.url, "verify": verify})
        (replica,) = world.until(lambda serving: serving.replicas[0].num_failures > 0)
        assert "lacks what is expected" in replica.error
        engine.fail("/v1/chat/completions", *[(400, {"error": {"message": "borogove? is too long"}})] * 9)
        world.until(lambda serving: "answered 400" in serving.replicas[0].error)
        assert all(word not in world.store.ledger.note("serving_replicas") for word in ("borogove", "mimsy", "zorp"))


def test_errands_know_when_they_are_not_wanted_any_more(tmp_path: Path) -> None:
    import threading

    around = Surroundings(tmp_path, threading.Event())
    around.check()
    around.cancelled.set()
    with pytest.raises(Exception, match="broken off"):
        around.pause(10)


def test_an_upgrade_overtaken_by_a_rollback_is_broken_off(world: World) -> None:
    slow = {"kind": "command", "command": [sys.executable, "-c", "import time; time.sleep(30)"], "link": "at"}
    world.replicas(slow)
    world.until(lambda serving: serving.replicas[0].sending == 2)
    world.rollback()
    world.until(lambda serving: serving.replicas[0].sending == 1)
    world.until(lambda serving: (world.home / "at").resolve() == Path(world.folder("v1")))


def test_store_is_not_asked_for_anything_where_there_are_no_replicas(world: World) -> None:
    serving = world.replicas()
    version = world.store.ledger.data_version()
    serving.tick()
    assert (serving.next_due(), serving.is_busy(), world.store.ledger.data_version()) == (None, False, version)
    assert isinstance(world.store, Store)
