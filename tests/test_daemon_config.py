"""service.toml: defaults, presets, and what is refused."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from daemon.config import Config, ConfigError, load, parse, to_dict
from daemon.config_told import MOST_TOLD

ROOT = Path(__file__).resolve().parent.parent


def test_the_shipped_service_toml_says_the_defaults() -> None:
    assert load(ROOT / "service.toml") == Config()


def test_a_gate_set_in_part_keeps_its_other_defaults() -> None:
    gate = parse({"gates": {"harm": {"max": 0.05}}}).gates.harm
    assert (gate.max, gate.max_regression) == (0.05, Config().gates.harm.max_regression)


def test_own_values_stand_over_the_preset() -> None:
    config = parse({"preset": "safepatching", "merge": {"accumulate": "protect"}})
    assert config.derive.order == "independent"
    assert config.derive.safety.objective == "ascent"
    assert config.merge.accumulate == "protect"


@pytest.mark.parametrize("preset", ["alignd", "safepatching"])
def test_stored_settings_read_back_equal(preset: str) -> None:
    config = parse({"preset": preset})
    assert parse(to_dict(config)) == config


def refused(path: Path, text: str) -> str:
    """What is said of a settings file that cannot be used."""
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"derive": {"ordr": 1}}, "unknown key `derive.ordr`; did you mean `order`?"),
        ({"gates": {"harm": {"klass": "required"}}}, "unknown key `gates.harm.klass`"),
        ({"judge": {"content_recall": 1.5}}, "content_recall"),
        ({"model": {"device": "tpu"}}, "device"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(values)
    assert said in str(caught.value)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = """
        seed = -1
        sed = 2
        model = 3
        [inbox]
        min_rows = 0
        x = 2
        [gates.harm]
        max = "x"
        [merge.search]
        alphas = [1, "x", 2, "y"]
        [[serving]]
        y = 1
        name = 1
        [[serving]]
        z = 1
    """
    said = refused(tmp_path / "service.toml", text)
    told = re.findall(r"\((\d+)\) (?:unknown key )?`([\w.\[\]]+)`", said)
    assert ": 10 faults: (1) `" in said
    assert [int(number) for number, _ in told] == list(range(1, 11))
    values = {"seed", "model", "inbox.min_rows", "gates.harm.max", "merge.search.alphas[1]", "serving[0].name"}
    assert {key for _, key in told} == values | {"sed", "inbox.x", "serving[0].y", "serving[1].z"}
    assert "`inbox.min_rows` is 0; allowed: whole number from 1" in said and "did you mean `seed`?" in said


def test_of_many_faults_the_first_are_told(tmp_path: Path) -> None:
    text = "seed = -1\n" + "".join(f"zorp{number} = 1\n" for number in range(MOST_TOLD))
    said = refused(tmp_path / "service.toml", text)
    assert f"{MOST_TOLD + 1} faults: (1) `seed` is -1; " in said and said.endswith("; and 1 more")
    assert said.count("known here") == 1


@pytest.mark.parametrize(
    "text",
    [
        '"x - at y" = 1',
        '"x - at `$.y" = 1',
        '[inbox]\n"a` - at `$.model" = 1',
        '"" = 1\nmodel = ""\n["`"]\n"`" = 1',
        "x" + ".x" * 3000 + " = 1",
        "inbox.path" + ".x" * 3000 + " = 1",
        "inbox" + ".inbox" * 3000 + " = 1",
        "serving = [[[{a = 1}]]]",
    ],
)
def test_whatever_keys_are_called_they_are_refused_in_words(tmp_path: Path, text: str) -> None:
    assert re.search(r"unknown key|allowed: |nested too deeply", refused(tmp_path / "service.toml", text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gates.harm]\nmin = 0.5\nmax = 0.1\n", "gates.harm.min is 0.5 and gates.harm.max is 0.1"),
        ("[gates.utility]\nmax_regression = -0.1\n", "gates.utility.max_regression is -0.1"),
        ("[gates.over_safety]\nmax_drift = 5\n", "gates.over_safety.max_drift is 5; it is a share"),
        ("[gates.harm]\nmax = nan\n", "gates.harm.max is nan"),
        ("[gates.drift]\nmax = inf\n", "gates.drift.max is inf; it must be a finite number"),
        ("[gates.drift]\nmax_regression = 0.1\n", "gates.drift.max_regression is 0.1, but the drift gate reads only"),
        ("[gates.drift]\nmin = 0.1\n", "gates.drift.min is 0.1"),
        ("[merge.search]\nalphas = []\n", "merge.search.alphas is empty"),
        ("[merge.search]\nretention_rates = []\n", "merge.search.retention_rates is empty"),
        ("[merge.search]\ntop_fractions = [0.1, 0.0]\n", "merge.search.top_fractions holds 0"),
        ("[merge.search]\nbetas = [1.0, -1.0]\n", "merge.search.betas holds -1"),
        ("[merge]\nmask = 'difference'\n", "merge.search.top_fractions holds 1 and merge.mask is 'difference'"),
        ("[merge]\naccumulate = 'protect'\n[derive]\nbackend = 'full'\n", "merge.accumulate is 'protect'"),
        ("[inbox]\npath = 'store'\n", "inbox.path is 'store'"),
        ("[inbox]\npath = 'store/drops'\n", "inbox.path is 'store/drops'"),
        ("[inbox]\npath = './x/../store'\n", "own folder `store`"),
        ("[inbox]\npath = 'models'\n", "own folder `models`"),
        ("[inbox]\npath = '.'\n", "inbox.path is '.'"),
        ("[probes]\nharm = ''\n", "probes.harm is ''"),
        ("[derive.over_safety]\nobjective = 'npo'\n", "derive.over_safety.objective is 'npo'"),
        ("[derive.over_safety]\nobjective = 'ascent'\n", "derive.over_safety.objective is 'ascent'"),
        ("[derive.over_safety]\nrefusal_weight = 1.0\n", "derive.over_safety.refusal_weight is 1"),
        ("[derive.over_safety]\nrecovery_weight = 1.0\n", "derive.over_safety.recovery_weight is 1"),
        (
            "[merge]\nmask = 'difference'\nscore = 'tuned'\n[merge.search]\ntop_fractions = [0.3, 0.1]\n",
            "top_fractions below 0.1",
        ),
        ("[derive.safety]\nobjective = 'descent'\n", "derive.safety.objective is 'descent'"),
    ],
)
def test_values_that_make_no_sense_are_refused_with_key_value_and_what_is_allowed(
    tmp_path: Path, text: str, said: str
) -> None:
    told = refused(tmp_path / "service.toml", text)
    assert said in told and str(tmp_path / "service.toml") in told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[inbox]\nmin_rows = "x"\n', '`inbox.min_rows` is "x"; allowed: whole number from 1'),
        ("[inbox]\nmin_rows = 0\n", "`inbox.min_rows` is 0; allowed: whole number from 1"),
        ("[inbox]\nmode = 'zorp'\n", '`inbox.mode` is "zorp"; allowed: `"auto"`, `"inotify"`, `"poll"`'),
        ("inbox = 3\n", "`inbox` is 3; allowed: a table"),
        ("[merge.search]\nalphas = [1.0, 'x']\n", '`merge.search.alphas[1]` is "x"; allowed: number'),
        ("[derive.safety]\nstop_loss = 'x'\n", '`derive.safety.stop_loss` is "x"; allowed: number or nothing'),
        ("[gates.harm]\nclass = 'x'\n", '`gates.harm.class` is "x"; allowed: `"required"`'),
        ("[[serving]]\nname = 'a'\nkind = 'x'\n", '`serving[0].kind` is "x"; allowed: `"vllm"`'),
        ("[[serving]]\nkind = 'vllm'\n", "`serving[0]` has no `name`, which must be given"),
        ("serving = [3]\n", "`serving[0]` is 3; allowed: a table"),
        (
            "[serving]\nurl = 'http://u:borogove@h/'\n",
            "`serving` is a table; allowed: tables, each headed `[[serving]]`",
        ),
        ("[[inbox]]\npath = 'borogove'\n", "`inbox` is a list; allowed: a table"),
        ("[model]\ndevice = '" + "x" * 99 + "'\n", "xxx…; allowed: `auto`, `cpu`, `cuda`, `cuda:N`"),
    ],
)
def test_a_value_that_is_none_of_its_kind_is_told_with_its_key_and_what_is_allowed(
    tmp_path: Path, text: str, said: str
) -> None:
    told = refused(tmp_path / "service.toml", text)
    assert said in told and "Expected" not in told and "borogove" not in told


@pytest.mark.parametrize(
    "text",
    [
        'preset = "safepatching"\n',
        "[gates.harm]\nmin = 0.0\nmax = 0.0\n",
        "[gates.drift]\nmax = 3.0\nmin_samples = 5\nclass = 'required'\n",
        "[merge.search]\nalphas = [0.0]\nbetas = [0.0]\nretention_rates = [0.1]\n",
        "[merge]\nmask = 'difference'\n[merge.search]\ntop_fractions = [0.09]\n",
        "[merge]\naccumulate = 'protect'\n",
        "[inbox]\npath = 'stores'\n",
        "[inbox]\npath = '../elsewhere/store'\n",
    ],
)
def test_values_at_the_edge_of_sense_are_taken(tmp_path: Path, text: str) -> None:
    path = tmp_path / "service.toml"
    path.write_text(text)
    assert load(path) is not None


def test_an_inbox_that_is_a_link_into_the_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store" / "spool").mkdir(parents=True)
    (tmp_path / "inbox").symlink_to("store/spool")
    (tmp_path / "service.toml").write_text("")
    with pytest.raises(ConfigError, match="own folder `store`"):
        load(tmp_path / "service.toml")


def test_every_fault_is_told_at_once_and_stored_settings_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "service.toml"
    path.write_text("[merge.search]\nalphas = []\n[derive.over_safety]\nrefusal_weight = 0.2\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert "alphas" in str(caught.value) and "refusal_weight" in str(caught.value)
    stored = tomllib.loads(path.read_text())  # as a round keeps it that began under an older alignd
    assert parse(to_dict(parse(stored))).derive.over_safety.refusal_weight == 0.2


def test_a_missing_file_is_named_and_the_hint_overwrites_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "nowhere" / "service.toml")
    said = str(caught.value)
    assert str(tmp_path / "nowhere" / "service.toml") in said and "`-c` takes the folder of a home" in said
    assert f"init {tmp_path}" not in said and "--model" not in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed = " + "9" * 5000, "not valid TOML"),
        ("seed = " + "[" * 5000, "nested too deeply"),
        ('"a\\u001b[31m" = 1', r"unknown key `a\\x1b\[31m`"),
        ('inbox.path = "a\\u0000"', r"inbox.path is 'a\\x00'; no name of a file holds a NUL"),
        ('probes.harm = "a\\u0000"', r"probes.harm is 'a\\x00'"),
        ('model.base = "a\\u0000"', r"model.base is 'a\\x00'"),
        ("derive.max_length = 16", "derive.max_length is 16; it must be more than 16"),
    ],
)
def test_hostile_settings_are_refused_in_words_that_may_be_printed(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "service.toml").write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load(tmp_path / "service.toml")
    assert str(caught.value).isprintable() and str(tmp_path) in str(caught.value)
