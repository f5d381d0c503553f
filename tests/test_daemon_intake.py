"""A stored batch as rows that a round may use: read, screened, split; the same on every call."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import intake
from daemon.basemodel import check_base
from daemon.config import Config
from daemon.config_checks import ANSWER_ROOM
from daemon.intake import SPLIT_SEED, TakenIn, UnusableBatchError, join, sequence_limit, take_in, together
from daemon.probes import ProbeFiles, load
from daemon.progress import ProgressEvent, Reporter, decode_event
from daemon.rows import Message, Row
from policies.intake import Split, split_rows
from state.errors import ModelFormatError
from tests.product import MODEL
from tests.round_world import NOW, Home, config_of, opened, pairs, write_pairs

SECRET = "quibblefrotz"


@pytest.fixture
def home(tmp_path: Path, tiny_folder: Path) -> Iterator[Home]:
    with opened(tmp_path / "home", tiny_folder) as made:
        yield made


def _take(home: Home, sha256: str, config: Config | None = None, *, is_learnt: bool = False) -> TakenIn:
    settings = config or home.config
    return take_in(home.store, settings, sha256, load(home.path, settings), is_learnt=is_learnt)


def test_a_batch_is_the_same_rows_and_the_same_split_on_every_call(home: Home) -> None:
    sha256 = home.drop()
    first, second = _take(home, sha256), _take(home, sha256)
    assert (first.rows, first.split, first.stats) == (second.rows, second.split, second.stats)


def test_what_is_learnt_from_searched_on_and_judged_on_are_different_rows(home: Home) -> None:
    taken = _take(home, home.drop(count=60))
    parts = [{row.messages for row in part} for part in (taken.train(), taken.development(), taken.gate())]
    assert all(parts) and sum(map(len, parts)) == 60 == len(set.union(*parts))
    assert [taken.stats[name] for name in ("num_train", "num_dev", "num_gate")] == [len(part) for part in parts]


def test_rows_whose_prompt_is_a_probe_are_left_out_and_counted(home: Home) -> None:
    probe = pairs("please", 24)[0][0]
    rows = [*pairs("how do I", 40), (probe.upper(), "take four zims")]
    taken = _take(home, home.drop(rows=rows))
    assert len(taken.rows) == 40 and taken.stats["dropped"] == {"copied_from_probe": 1}
    assert taken.stats["dropped_at"] == {"copied_from_probe": "batch1.jsonl, row 41"}


def test_a_prompt_longer_than_the_context_is_left_out_and_one_that_fits_stays(home: Home) -> None:
    config = config_of({"derive": {"max_length": 64}})
    tokens = 64 - ANSWER_ROOM
    count = intake._TokenCounter(home.store.model_path(0)).num_tokens

    fits = "x"
    while count([[_Turn(fits + " q")]])[0] <= tokens:
        fits += " q"
    not_fits = fits + " q"
    rows = [*pairs("how do I", 24), (fits, "take two zims"), (not_fits, "take three zims")]
    taken = _take(home, home.drop(rows=rows), config)
    prompts = {row.messages[-1].content for row in taken.rows}
    assert fits in prompts and not_fits not in prompts and taken.stats["dropped"] == {"long_prompt": 1}


class _Turn:
    role = "user"

    def __init__(self, content: str) -> None:
        self.content = content


@pytest.mark.parametrize(("max_length", "limit"), [(128, 128), (4096, 256)])
def test_the_shorter_of_setting_and_context_limits_a_sequence(home: Home, max_length: int, limit: int) -> None:
    assert sequence_limit(home.store.model_path(0), config_of({"derive": {"max_length": max_length}})) == limit


def test_a_base_that_names_no_context_leaves_the_setting_alone(home: Home, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "zim"}')
    assert sequence_limit(tmp_path, config_of({"derive": {"max_length": 99}})) == 99


def test_refusal_openings_from_the_settings_count(home: Home) -> None:
    rows = [*pairs("how do I", 24), ("florp", "Grolt forbids it, friend")]
    config = config_of({"judge": {"refusals": ["grolt forbids"]}})
    assert _take(home, home.drop(rows=rows), config).stats["dropped"] == {"refusal": 1}


def test_a_batch_that_cannot_be_read_is_refused_with_file_and_row(home: Home) -> None:
    source = home.store.spool / "x.drop"
    source.write_text(json.dumps({"prompt": SECRET, "response": "a b"}) + "\n" + f'{{"prompt": "{SECRET}"}}\n')
    sha256 = home.store.claim_batch(source, name="x.jsonl", actor="test", now=NOW).batch.sha256
    with pytest.raises(UnusableBatchError) as refused:
        _take(home, sha256)
    assert refused.value.reasons[0].startswith("x.jsonl, row 2: ") and SECRET not in str(refused.value)


def test_a_batch_of_one_prompt_cannot_be_held_out_and_is_refused(home: Home) -> None:
    rows = [("florp it", f"take {n} zims") for n in range(30)]
    with pytest.raises(UnusableBatchError, match="share one prompt or one response"):
        _take(home, home.drop(rows=rows))


@pytest.mark.parametrize("change", [{"inbox": {"min_rows": 500}}, {"judge": {"refusals": ["arl", "bim"]}}])
def test_a_batch_that_a_version_was_made_with_is_never_refused_for_few_rows(
    home: Home, change: dict[str, object]
) -> None:
    sha256, config = home.drop(count=14), config_of({"inbox": {"min_rows": 14}}, change)
    with pytest.raises(UnusableBatchError):
        _take(home, sha256, config)
    assert _take(home, sha256, config, is_learnt=True).rows


def test_a_batch_whose_every_row_became_a_probe_is_still_no_obstacle(home: Home) -> None:
    sha256 = home.drop()
    write_pairs(home.path / "probes" / "harm.jsonl", pairs("how do I", 24, 1))
    taken = _take(home, sha256, is_learnt=True)
    assert (taken.rows, taken.train(), taken.gate()) == ([], [], [])


def test_stats_hold_no_text(home: Home) -> None:
    rows = [(f"{SECRET} {prompt}", f"{response} {SECRET}") for prompt, response in pairs("how do I", 30)]
    taken = _take(home, home.drop(rows=[*rows, rows[0], (SECRET, f"I cannot {SECRET}")]))
    assert SECRET not in json.dumps(taken.stats) and taken.stats["num_records"] == 32


@pytest.mark.parametrize(("min_rows", "outcome"), [(12, "accepted"), (500, "quarantined")])
def test_an_intake_tells_its_outcome_with_the_counts(home: Home, min_rows: int, outcome: str) -> None:
    stream = io.StringIO()
    done = intake.run(home.store, config_of({"inbox": {"min_rows": min_rows}}), home.drop(), Reporter(stream))
    assert done.outcome == outcome and done.result["num_records"] == 24
    assert bool(done.reasons) == (outcome == "quarantined")
    assert isinstance(decode_event(stream.getvalue().splitlines()[0]), ProgressEvent)


def test_a_model_whose_tokenizer_is_no_single_file_counts_tokens_all_the_same(home: Home) -> None:
    folder = home.store.model_path(0)
    wanted = intake._TokenCounter(folder).num_tokens([[_Turn("how do I florp")]])
    core = json.loads((folder / "tokenizer.json").read_bytes())["model"]
    folder.chmod(0o755)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(core["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in core["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    settings = json.loads((folder / "tokenizer_config.json").read_bytes())
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "GPT2Tokenizer"}))
    assert intake._TokenCounter(folder).num_tokens([[_Turn("how do I florp")]]) == wanted


def test_many_rows_are_counted_as_one_by_one_and_never_above_the_bound(tiny_folder: Path) -> None:
    counter = intake._TokenCounter(tiny_folder)
    texts = [
        "",
        " ",
        "florp",
        " zörb 三\n\n",
        "\U0001f40c" * 3,
        "a\u0301 ﷺ",
        *(f"zim {n} " * (n % 7) for n in range(200)),
    ]
    rows = [[_Turn(text) for text in texts[start : start + start % 3]] for start in range(len(texts))]
    one = counter._tokenizer.encode
    alone = [sum(len(one(turn.content, add_special_tokens=False).ids) for turn in turns) for turns in rows]
    assert counter.num_tokens(rows) == alone and counter.num_tokens([]) == []
    most = counter.most()
    assert most is not None and all(count <= most(turns) for count, turns in zip(alone, rows, strict=True))


_DIGITS = {"type": "Digits", "individual_digits": True}
_SPACED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}


def _tokenizer_with(folder: Path, tiny_folder: Path, **parts: object) -> intake._TokenCounter:
    content = json.loads((tiny_folder / "tokenizer.json").read_bytes())
    (folder / "tokenizer.json").write_text(json.dumps({**content, **parts}))
    return intake._TokenCounter(folder)


def test_a_space_before_each_piece_is_within_the_bound(tiny_folder: Path, tmp_path: Path) -> None:
    splitter = {"type": "Sequence", "pretokenizers": [_DIGITS, _SPACED]}
    counter = _tokenizer_with(tmp_path, tiny_folder, pre_tokenizer=splitter)
    most, rows = counter.most(), [[_Turn(text)] for text in ("7" * 40, "", "zim 7 florp")]
    counts = counter.num_tokens(rows)
    assert counts[0] > 40  # more tokens than bytes
    assert most is not None and all(count <= most(turns) for count, turns in zip(counts, rows, strict=True))


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}},
    ],
    ids=["normalizer", "metaspace"],
)
def test_where_a_text_may_become_longer_there_is_no_bound(
    tiny_folder: Path, tmp_path: Path, part: dict[str, object]
) -> None:
    assert _tokenizer_with(tmp_path, tiny_folder, **part).most() is None


def test_no_files_mean_no_probe_prompts() -> None:
    assert ProbeFiles((), (), (), (), {}).prompts() == frozenset()


def test_a_batch_of_nothing_but_held_out_rows_of_an_earlier_one_is_refused() -> None:
    rows = [Row((Message("user", f"zorb {number}"),), f"vek {number}", "", "batch", number) for number in range(60)]
    earlier = {"one": TakenIn(rows, split_rows(rows, SPLIT_SEED), {})}
    held_out = earlier["one"].gate()
    later = TakenIn(held_out, Split(tuple(range(len(held_out))), (), ()), {"num_rows": len(held_out)})
    with pytest.raises(UnusableBatchError, match=r"none of its 20 rows can be learnt from.*drop it again") as refused:
        join(earlier, "two", later)
    assert refused.value.stats == {"num_rows": 20}
    assert list(join(earlier, "two", earlier["one"])) == ["one", "two"]


_WORDS = '{"version": "1.0", "model": {"type": "WordLevel", "vocab": %s, "unk_token": "?"}}'


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tokenizer.json", '{"version": "1.0"}', "tokenizer.json is no tokenizer"),
        ("tokenizer.json", "[" * 5000, "tokenizer.json"),
        ("tokenizer.json", _WORDS % '{"a": 0}', "tokenizer.json is no tokenizer: WordLevel error"),
        ("config.json", '{"max_position_embeddings": 16}', "leaves no room for a prompt"),
        ("config.json", '{"max_position_embeddings": -1}', "leaves no room for a prompt"),
        ("config.json", "[" * 100_000, "config.json: is no JSON"),
        ("tokenizer_config.json", "[" * 100_000, "tokenizer_config.json: is no JSON"),
    ],
)
def test_a_base_that_no_batch_could_be_read_with_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    shutil.copytree(MODEL, tmp_path / "base")
    (tmp_path / "base" / name).chmod(0o600)
    (tmp_path / "base" / name).write_text(text)
    with pytest.raises(ModelFormatError, match=said):
        check_base(tmp_path / "base")
    if not name.startswith("tokenizer_"):
        with pytest.raises(ModelFormatError, match=said):
            intake._TokenCounter(tmp_path / "base")
            sequence_limit(tmp_path / "base", Config())


def test_a_vocabulary_that_would_take_all_memory_is_refused_unread(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").chmod(0o600)
    (tmp_path / "base" / "tokenizer.json").write_text(_WORDS % '{"?": 0, "a": 4294967295}')
    with pytest.raises(ModelFormatError, match="a token has an id of 16777216 or more"):
        check_base(tmp_path / "base")


def test_batches_together_have_all_their_rows_on_the_sides_that_they_had(home: Home) -> None:
    batches = {str(seed): _take(home, home.drop(seed, count=count)) for seed, count in ((1, 60), (2, 30))}
    one, other = batches.values()
    whole = together(batches, 1000)
    assert whole.train() == one.train() + other.train()
    assert whole.development() == one.development() + other.development()
    assert whole.gate() == one.gate() + other.gate()
    assert whole.stats["num_batches"] == 2 and whole.stats["num_train"] == len(whole.train())
    few = together(batches, 2 * len(other.train()))
    assert few.train()[len(other.train()) :] == other.train()
    assert len(few.train()) == 2 * len(other.train()) and set(few.split.train) < set(whole.split.train)
    assert few.gate() == whole.gate() and few.development() == whole.development()
