"""A version leaves its home as a folder, an overlay or a recipe: whole, checked, atomic, with its papers."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from daemon import cli, exitcodes
from daemon.commands_export import FORMS
from daemon.forms import WRITERS
from daemon.modelcard import USAGE
from state import durable, scratch
from state.store import Store
from tests.command_world import Alignd, usable_base
from tests.state_world import PAPERS, content, make_version, without_papers

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def alignd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Alignd:
    usable_base(tmp_path / "base")
    assert cli.main(["init", "--no-trial", str(tmp_path / "home"), "--model", str(tmp_path / "base")]) == 0
    return Alignd(tmp_path / "home", capsys)


@pytest.fixture
def two(alignd: Alignd) -> Iterator[Store]:
    with Store.open(alignd.home) as store:
        make_version(store, 1)
        make_version(store, 2, names=("layer.0.weight", "embed.weight"))
        yield store


def run_apply(base: Path, folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """The exported script in a process that can import nothing of ours."""
    command = [sys.executable, "-I", str(folder / "apply.py"), str(base), str(out)]
    return subprocess.run(
        command, cwd=out.parent, env={"PYTHONPATH": ""}, capture_output=True, text=True, check=False, timeout=60
    )


def flip(path: Path) -> None:
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


# the folder and its papers


def test_a_folder_is_the_version_byte_for_byte_beside_its_papers(alignd: Alignd, two: Store, tmp_path: Path) -> None:
    told = alignd.json("export", "v2", str(tmp_path / "out"))
    assert without_papers(tmp_path / "out") == content(two.model_path(2))
    assert content(tmp_path / "out").keys() > PAPERS
    assert (told["form"], told["num_bytes"]) == ("hf", sum(map(len, content(tmp_path / "out").values())))


def test_nothing_is_exported_into_the_inbox_where_it_would_be_taken_for_a_batch(alignd: Alignd, two: Store) -> None:
    for folder in (alignd.home / "inbox" / "out", alignd.home / "models" / ".." / "inbox" / "out"):
        code, _, err = alignd("export", "v2", str(folder))
        assert (code, "is in the inbox" in err) == (exitcodes.FAILED, True)
        (alignd.home / "service.toml").write_text("nonsense = ")
    assert list((alignd.home / "inbox").iterdir()) == []


def test_the_base_keeps_its_own_card_beside_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (usable_base(tmp_path / "base") / "README.md").write_text("# the base\n")
    assert cli.main(["init", "--no-trial", str(tmp_path / "home"), "--model", str(tmp_path / "base")]) == 0
    Alignd(tmp_path / "home", capsys).json("export", "v0", str(tmp_path / "out"))
    assert (tmp_path / "out/README.base.md").read_text() == "# the base\n"
    assert "# base-v0" in (tmp_path / "out/README.md").read_text()


def test_what_was_exported_may_be_a_base_and_be_exported_again(
    alignd: Alignd, two: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alignd.json("export", "v2", str(tmp_path / "first"))
    folder = tmp_path / "first"
    for number in (2, 3):
        assert cli.main(["init", "--no-trial", str(tmp_path / f"home{number}"), "--model", str(folder)]) == 0
        Alignd(tmp_path / f"home{number}", capsys).json("export", "v0", str(tmp_path / f"out{number}"))
        folder = tmp_path / f"out{number}"
    first, last = content(tmp_path / "first"), content(folder)
    assert last["README.base.md"] == first["README.md"]
    assert last["bom.base.cdx.json"] == first["bom.cdx.json"]
    assert {"README.base.base.md", "bom.base.base.cdx.json"} < last.keys()
    assert last["model-00001-of-00002.safetensors"] == first["model-00001-of-00002.safetensors"]


def test_the_card_names_the_judge_of_the_figures_where_the_record_has_none(
    alignd: Alignd, two: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.provenance.judge_of", lambda metrics: "rule 12ab34cd")
    alignd.json("export", "v2", str(tmp_path / "out"))
    assert "greedy decoding, judged by rule 12ab34cd.\n" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("judge", ["classifier longformer 12ab34cd; the rules agree on 90.0% of 20 harm probes", ""])
def test_the_card_says_who_judged_where_that_is_known(
    alignd: Alignd, two: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: str
) -> None:
    monkeypatch.setattr("daemon.provenance.judge_text", lambda record: judge)
    alignd.json("export", "v2", str(tmp_path / "out"))
    text = (tmp_path / "out/README.md").read_text()
    assert (f"greedy decoding, judged by {judge}.\n" if judge else "greedy decoding.\n") in text


def test_the_card_is_one_that_model_hubs_read(alignd: Alignd, two: Store, tmp_path: Path) -> None:
    alignd.json("export", "v2", str(tmp_path / "out"), "--base-model", "zorp/glim-1b")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert (card.data.base_model, card.data.pipeline_tag) == ("zorp/glim-1b", "text-generation")
    assert {"alignd", "safety"} <= set(card.data.tags)
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results["harm_rate"] == 0.1
    for line in ("# glim-1b-v2", "## Lineage", "## What changed", "## Intended use", "## Limits"):
        assert line in card.text
    rows = [line for line in card.text.splitlines() if line.startswith("| v")]
    assert [row.split(" | ")[0] for row in rows] == ["| version", "| v0", "| v1", "| v2"]


def test_the_papers_hold_neither_text_nor_names_nor_paths_of_the_home(
    alignd: Alignd, two: Store, tmp_path: Path
) -> None:
    for form in ("hf", "overlay"):
        alignd.json("export", "v2", str(tmp_path / form), "--to", form)
        for name in PAPERS | ({"overlay.json"} if form == "overlay" else set()):
            text = (tmp_path / form / name).read_text()
            assert "zorp" not in text and "batch1.jsonl" not in text and str(tmp_path) not in text, name


def test_a_version_that_was_rolled_back_says_so(alignd: Alignd, two: Store, tmp_path: Path) -> None:
    two.rollback("v1", reason="bad", actor="tester", now="2026-01-02T03:04:05Z")
    _, _, err = alignd("export", "v2", str(tmp_path / "out"))
    assert "v2 is rolled_back" in err
    assert "**Not in service.** Where it was made this version is rolled back, and blocked" in (
        (tmp_path / "out/README.md").read_text().replace("\n>", "")
    )


@pytest.mark.parametrize("form", ["hf", "overlay", "mergekit"])
def test_the_bill_of_materials_meets_the_published_schema(
    alignd: Alignd, two: Store, tmp_path: Path, form: str
) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    alignd.json("export", "v2", str(tmp_path / "out"), "--to", form)
    text = (tmp_path / "out/bom.cdx.json").read_text()
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert error is None, error
    bill = json.loads(text)
    files = {part["name"]: part["hashes"][0]["content"] for part in bill["components"] if part["type"] == "file"}
    assert files.keys() == content(tmp_path / "out").keys() - {"bom.cdx.json"}
    assert bill["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    batches = [part for part in bill["components"] if part["type"] == "data"]
    assert [part["hashes"][0]["content"] for part in batches] == [two.version(n).batch for n in (1, 2)]
    base = {name: hashlib.sha256(data).hexdigest() for name, data in content(two.model_path(0)).items()}
    told = {row["name"]: row["value"] for row in bill["components"][0]["properties"]}
    assert told == {f"alignd:sha256:{name}": digest for name, digest in base.items()}


# all forms


@pytest.mark.parametrize(
    "words", [("--rank", "4"), ("--force",), ("--to", "peft", "--outtype", "f16"), ("--to", "hf", "--converter", "x")]
)
def test_an_option_of_another_form_is_refused(alignd: Alignd, tmp_path: Path, words: tuple[str, ...]) -> None:
    code, _, err = alignd("export", "v0", str(tmp_path / "out"), *words)
    assert code == exitcodes.USAGE and "is for --to" in err


def test_every_form_that_the_command_offers_can_be_written() -> None:
    assert set(FORMS) == set(WRITERS) == set(USAGE)


@pytest.mark.parametrize("form", ["hf", "overlay", "mergekit"])
def test_nothing_is_left_of_an_export_of_damaged_bytes(alignd: Alignd, two: Store, tmp_path: Path, form: str) -> None:
    flip(two.overlay_path(2) if form == "overlay" else two.model_path(2) / "model-00002-of-00002.safetensors")
    before = {path.name for path in tmp_path.iterdir()}
    assert alignd("export", "v2", str(tmp_path / "out"), "--to", form)[0] == exitcodes.INTEGRITY
    assert {path.name for path in tmp_path.iterdir()} == before


def test_what_a_killed_export_left_goes_with_the_next_one(alignd: Alignd, two: Store, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\nfrom daemon import cli, forms\n"
        "forms.write_papers = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "cli.main(sys.argv[1:])"
    )
    words = ["-c", str(alignd.home), "export", "v1", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.glob(".tmp-export-*"))) == 1
    others = tmp_path / ".tmp-export-mine"
    others.mkdir()
    with scratch.private_folder(tmp_path, "export") as living:
        alignd.json("export", "v1", str(tmp_path / "out"))
        assert living.is_dir()
    assert list(tmp_path.glob(".tmp-export-*")) == [others]


def test_a_folder_that_comes_in_between_is_not_overwritten(
    alignd: Alignd, two: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = durable.publish_folder

    def late(staging: Path, target: Path) -> None:
        target.mkdir()
        (target / "theirs").write_text("x")
        publish(staging, target)

    monkeypatch.setattr(durable, "publish_folder", late)
    code, _, err = alignd("export", "v1", str(tmp_path / "out"))
    assert code == exitcodes.FAILED and "already" in err
    assert content(tmp_path / "out") == {"theirs": b"x"}
    assert not list(tmp_path.glob(".tmp-*"))


# the overlay


@pytest.mark.parametrize("is_kept", [True, False])
def test_the_script_rebuilds_the_version_without_alignd(
    alignd: Alignd, two: Store, tmp_path: Path, *, is_kept: bool
) -> None:
    expected = content(two.model_path(2))
    if not is_kept:
        shutil.rmtree(two.model_path(2))
    alignd.json("export", "v2", str(tmp_path / "overlay"), "--to", "overlay")
    done = run_apply(tmp_path / "base", tmp_path / "overlay", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "out") == expected
    again = run_apply(tmp_path / "base", tmp_path / "overlay", tmp_path / "out")
    assert again.returncode == 1 and "overwritten" in again.stderr


def test_an_overlay_is_against_the_base_and_equal_for_equal_versions(
    alignd: Alignd, two: Store, tmp_path: Path
) -> None:
    """v2 stands on v1; the overlay has what both changed, and the same bytes each time."""
    for name in ("a", "b"):
        alignd.json("export", "v2", str(tmp_path / name), "--to", "overlay")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    alignd.json("export", "v0", str(tmp_path / "none"), "--to", "overlay")
    done = run_apply(tmp_path / "base", tmp_path / "none", tmp_path / "out")
    assert done.returncode == 0 and content(tmp_path / "out") == content(two.model_path(0))


@pytest.mark.parametrize("what", ["base", "overlay", "manifest"])
def test_the_script_finds_a_flipped_byte_and_leaves_nothing(
    alignd: Alignd, two: Store, tmp_path: Path, what: str
) -> None:
    alignd.json("export", "v2", str(tmp_path / "overlay"), "--to", "overlay")
    manifest = tmp_path / "overlay/overlay.json"
    if what == "manifest":
        told = json.loads(manifest.read_text())
        told["result"]["files"]["model-00001-of-00002.safetensors"] = "0" * 64
        manifest.write_text(json.dumps(told))
    else:
        flip(
            {
                "base": tmp_path / "base/model-00001-of-00002.safetensors",
                "overlay": tmp_path / "overlay/overlay.safetensors",
            }[what]
        )
    done = run_apply(tmp_path / "base", tmp_path / "overlay", tmp_path / "out")
    assert done.returncode == 1
    assert {"base": "the base", "overlay": "the overlay", "manifest": "the result"}[what] in done.stderr
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil"])
def test_the_script_writes_nothing_outside_its_folder(alignd: Alignd, two: Store, tmp_path: Path, name: str) -> None:
    alignd.json("export", "v2", str(tmp_path / "overlay"), "--to", "overlay")
    manifest = tmp_path / "overlay/overlay.json"
    told = json.loads(manifest.read_text())
    for files in (told["base"]["files"], told["result"]["files"]):
        files[name] = files["config.json"]
    manifest.write_text(json.dumps(told))
    done = run_apply(tmp_path / "base", tmp_path / "overlay", tmp_path / "out")
    assert done.returncode == 1 and "no file inside a model folder" in done.stderr


def test_the_script_is_the_module_as_it_stands() -> None:
    """It imports nothing of ours, and its notes say how the format is read."""
    text = (ROOT / "state/apply_overlay.py").read_text()
    assert "from state" not in text and "import daemon" not in text and "exit(main())" in text


# the recipe


def test_a_recipe_names_the_base_and_the_version_beside_it(alignd: Alignd, two: Store, tmp_path: Path) -> None:
    alignd.json("export", "v2", str(tmp_path / "out"), "--to", "mergekit")
    told = yaml.safe_load((tmp_path / "out/mergekit.yml").read_text())
    assert told["base_model"] == str(two.model_path(0))
    assert told["models"] == [{"model": "./v2", "parameters": {"weight": 1.0}}]
    assert (told["merge_method"], told["dtype"], told["out_dtype"]) == ("task_arithmetic", "float32", "bfloat16")
    assert content(tmp_path / "out/v2") == content(two.model_path(2))


def test_mergekit_accepts_the_recipe(alignd: Alignd, two: Store, tmp_path: Path) -> None:
    config = pytest.importorskip("mergekit.config", reason="mergekit is not installed; its pins are its own")
    alignd.json("export", "v2", str(tmp_path / "out"), "--to", "mergekit")
    told = config.MergeConfiguration.model_validate(yaml.safe_load((tmp_path / "out/mergekit.yml").read_text()))
    assert told.merge_method == "task_arithmetic"
