"""Rows of several sources: each under its source's name, set aside by source, and refused with all that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghosttune.config.loading import load_config
from ghosttune.config.rendering import commented_yaml, plain_yaml
from ghosttune.config.sections.data import RowsSettings, SourceSettings
from ghosttune.data.mixing import open_data, source_of_row
from ghosttune.data.records import Record, Records
from ghosttune.data.sources import open_source
from ghosttune.data.splitting import split_off, split_off_each
from ghosttune.errors import ConfigError, DataError, TooFewRows
from ghosttune.stages.prepare import prepare


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def asks(words: str, count: int, **columns: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{words} {n}?", "completion": f"{n}", **columns} for n in range(count)]


def says(words: str, count: int) -> list[dict[str, Any]]:
    turns = [("user", words), ("assistant", "fine")]
    return [
        {"id": n, "source": "web", "messages": [{"role": role, "content": f"{text} {n}"} for role, text in turns]}
        for n in range(count)
    ]


@pytest.fixture
def sources(tmp_path) -> dict[str, dict[str, Any]]:
    """Two files of one name, with other columns, one of them with the ids 0, 1, … and a column `source`."""
    return {
        "plain": {"path": written(tmp_path / "plain" / "rows.jsonl", asks("Number", 20))},
        "größe chat": {"path": written(tmp_path / "chat" / "rows.jsonl", says("How are you", 12))},
    }


@pytest.fixture
def mixture(make_config, sources):
    """Configurations of a run on both."""
    return lambda **changes: make_config(**{"data__train__path": None, "data__train__sources": sources} | changes)


def test_a_mixture_holds_the_rows_of_each_source_under_its_name(sources):
    records = list(open_data(SourceSettings(sources=sources)).records)  # pyright: ignore[reportArgumentType]
    alone = {name: list(open_source(RowsSettings(**one)).records) for name, one in sources.items()}
    assert [record.turns for record in records] == [record.turns for rows in alone.values() for record in rows]
    assert [record.example_id for record in records] == [
        f"{name}/{record.example_id}" for name, rows in alone.items() for record in rows
    ]
    assert [record.metadata["source"] for record in records] == ["plain"] * 20 + ["größe chat"] * 12
    assert {record.metadata.get("row_source") for record in records} == {None, "web"}
    assert {source_of_row(record.example_id) for record in records} == set(sources)


def test_one_source_keeps_its_ids(sources):
    one = SourceSettings(**sources["plain"])
    assert list(open_data(one).records) == list(open_source(one).records)


def test_what_is_wrong_with_every_source_is_said_at_once(tmp_path, sources):
    given = sources | {
        "empty": {"path": written(tmp_path / "empty.jsonl", [])},
        "bad": {"path": written(tmp_path / "bad.jsonl", [{"prompt": "a", "completion": 3}])},
        "gone": {"path": str(tmp_path / "gone.jsonl")},
    }
    with pytest.raises(DataError) as refusal:
        open_data(SourceSettings(sources=given))  # pyright: ignore[reportArgumentType]
    assert all(f"source {name}: " in str(refusal.value) for name in ("empty", "bad", "gone"))
    assert list(refusal.value.rows) == ["bad/bad.jsonl:1"]
    again = SourceSettings(sources={"bad": given["bad"], "plain": sources["plain"]})
    with pytest.raises(TooFewRows, match="source bad: bad holds no rows"):
        open_data(again, without={"bad/bad.jsonl:1"})


def test_formats_that_one_task_does_not_read_together_are_refused(tmp_path):
    paths = {
        "one": written(tmp_path / "one.jsonl", [{"text": "a", "label": "x"}]),
        "pair": written(tmp_path / "pair.jsonl", [{"premise": "a", "hypothesis": "b", "label": "x"}]),
    }
    given: Any = {name: {"path": path} for name, path in paths.items()}
    with pytest.raises(DataError, match="one is labelled_text, pair is labelled_pair"):
        open_data(SourceSettings(sources=given), ("labelled_pair", "labelled_text"))


GROUPS = st.lists(st.lists(st.integers(0, 12), min_size=2, max_size=30), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(GROUPS, st.floats(0.05, 0.5), st.integers(0, 99))
def test_rows_are_set_aside_of_every_source_and_no_prompt_straddles(groups, fraction, seed):
    rows = [Record(f"{name}/{n}", (), f"{group}") for name, part in enumerate(groups) for n, group in enumerate(part)]
    records, names = Records.of(rows), np.array([source_of_row(row.example_id) for row in rows], object)
    try:
        rest, drawn = split_off_each(records, names, fraction, seed, "dev")
    except TooFewRows:
        alone = [set(part) for part in groups]
        assert any(len(part) == 1 or part & set().union(*alone[:n], *alone[n + 1 :]) for n, part in enumerate(alone))
        return
    assert sorted(row.example_id for part in (rest, drawn) for row in part) == sorted(row.example_id for row in rows)
    assert not {row.group for row in rest} & {row.group for row in drawn}
    taken = {row.example_id for row in drawn}
    for name in set(names):
        alone = split_off(records.where(names == name), fraction, seed, "dev")[1]
        assert taken >= {row.example_id for row in alone}, "as of the source alone, and what shares a prompt elsewhere"
        assert any(source_of_row(row.example_id) == name for row in rest)
    if len(groups) == 1:
        assert [row.example_id for row in drawn] == [row.example_id for row in alone]


def test_rows_are_counted_limited_and_set_aside_by_source(mixture, sources):
    limited = {"plain": sources["plain"] | {"limit": 10}, "größe chat": sources["größe chat"]}
    prepared = prepare(mixture(data__train__sources=limited, data__dev__fraction=0.25))
    assert {name: rows["train"] + rows["dev"] for name, rows in prepared.sources.items()} == {
        "plain": 10,
        "größe chat": 12,
    }
    assert {name: rows["dev"] for name, rows in prepared.sources.items()} == {"plain": 2, "größe chat": 3}
    assert prepared.left_out == {"plain: beyond its limit": 10}
    assert prepared.config.data.train.sources is not None
    assert [one.format for one in prepared.config.data.train.sources.values()] == ["prompt_completion", "messages"]
    again = prepare(load_config(prepared.config.model_dump()))
    assert [row.example_id for row in again.train_records] == [row.example_id for row in prepared.train_records]


def test_a_source_without_dev_rows_beside_others_that_have_them_needs_a_word(mixture, sources, tmp_path):
    rows = asks("Which", 6) + asks("Who", 6)
    for row in rows[6:]:
        row["split"] = "dev"
    rows = [{"split": "train", **row} for row in rows]
    with_dev = {**sources, "own": {"path": written(tmp_path / "own.jsonl", rows)}}
    with pytest.raises(ConfigError, match=r"data\.dev: must be chosen: plain, größe chat of the mixture"):
        prepare(mixture(data__train__sources=with_dev))
    chosen = prepare(mixture(data__train__sources=with_dev, data__dev__split="dev"))
    assert {name: found["dev"] for name, found in chosen.sources.items()} == {"plain": 0, "größe chat": 0, "own": 6}


def test_every_wrong_setting_of_every_source_is_named(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "data:\n  train:\n    limit: 3\n    sources:\n      a: {path: a.jsonl, limit: 0}\n      b: {pfad: b}\n"
        "      c/d: {path: x}\n      e: {path: a.jsonl}\n      f: 7\n      g: {name: dolli}\n      a: {path: z.jsonl}\n"
    )
    with pytest.raises(ConfigError) as refusal:
        load_config(path)
    said = {problem.setting: (problem.message, problem.origin) for problem in refusal.value.problems}
    assert said.keys() == {
        "data.train.limit",
        *(f"data.train.sources.{name}" for name in ("a", "a.limit", "b.pfad", "c/d", "e", "f", "g.name")),
    }
    assert said["data.train.sources.a"] == ("is given twice (first in line 5); keep one", "run.yaml:11")
    assert "limit" in said["data.train.sources.f"][0] and said["data.train.sources.f"][1] == "run.yaml:9"
    assert "did you mean dolly" in said["data.train.sources.g.name"][0]


@pytest.mark.parametrize("wrong", [{}, [], ["a"], 3, "a"])
def test_what_is_no_mixture_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"data\.train\.sources"):
        load_config({"data": {"train": {"sources": wrong}}})


def test_a_mixture_is_written_and_read_again_and_gives_way_to_one_source(tmp_path):
    given = {"data": {"train": {"sources": {"a": {"path": "a.jsonl"}, "b": {"name": "dolly"}}}}}
    config = load_config(given)
    assert config.data.train.sources is not None
    assert config.data.train.sources["a"].path == str(Path("a.jsonl").absolute())
    for number, text in enumerate((plain_yaml(config), commented_yaml(config))):
        (tmp_path / f"{number}.yaml").write_text(text)
        assert load_config(tmp_path / f"{number}.yaml") == config
    assert load_config(given, overrides=["data.train.path=/x"]).data.train == SourceSettings(path="/x")
    fewer = load_config(given, overrides=["data.train.sources.b.limit=5"]).data.train.sources
    assert fewer is not None and fewer["b"].limit == 5 and fewer["a"].path is not None
