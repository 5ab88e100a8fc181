"""Guide rows: apart from the rows that train and those that choose checkpoints, and as many as were asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ghosttune.config.loading import load_config
from ghosttune.errors import ConfigError, DataError
from ghosttune.stages.prepare import Prepared, prepare


@pytest.fixture
def grouped(tmp_path) -> Path:
    """Forty rows in sixteen groups of equal prompts, of one to four rows."""
    rows = [(group, place) for group in range(16) for place in range(1 + group % 4)]
    return written(tmp_path / "grouped.jsonl", [row(f"ask {group}", f"answer {place}") for group, place in rows])


def row(prompt: str, completion: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **more}


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepared(path: Path, model: Path, **settings: Any) -> Prepared:
    overrides = {"model.name": str(model), "model.device": "cpu", "data.train.path": str(path), **settings}
    return prepare(load_config(overrides=[f"{key}={json.dumps(value)}" for key, value in overrides.items()]))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("guide", [{"data.guide.rows": 7}, {"data.guide.fraction": 0.2}, {}], ids=str)
def test_no_prompt_is_on_two_sides(grouped, tiny_model, seed, guide):
    found = prepared(grouped, tiny_model, **{"train.seed": seed, **guide})
    sides = [{r.group for r in side} for side in (found.train_records, found.dev_records, found.guide_records)]
    assert all(sides) and not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    used = len(found.train) + len(found.dev) + len(found.guide)
    assert used + found.left_out.get("beyond data.guide.rows", 0) == 40
    if "data.guide.rows" in guide:
        assert len(found.guide) == 7


def test_the_dev_rows_do_not_depend_on_the_guide_rows(grouped, tiny_model):
    without = prepared(grouped, tiny_model, **{"measure.ledger": None})
    assert not without.guide_records
    found = prepared(grouped, tiny_model, **{"data.guide.rows": 9})
    assert [r.example_id for r in found.dev_records] == [r.example_id for r in without.dev_records]


def test_rows_that_cannot_be_had_are_refused_with_the_number_that_can(grouped, tiny_model):
    with pytest.raises(DataError, match=r"data\.guide\.rows asks for 40 rows.*at most 3\d can be set aside"):
        prepared(grouped, tiny_model, **{"data.guide.rows": 40})


def test_one_prompt_only_leaves_no_guide_rows(tmp_path, tiny_model):
    one = written(tmp_path / "one.jsonl", [row("ask", f"answer {place}") for place in range(9)])
    dev = written(tmp_path / "dev.jsonl", [row("else", "answer")])
    for guide in ({"data.guide.rows": 2}, {}):
        with pytest.raises(DataError, match="guide"):
            prepared(one, tiny_model, **{"data.dev.path": str(dev), **guide})


def split_rows(tmp_path: Path, shared: str) -> Path:
    """A guide row that asks what a `shared` row asks."""
    rows = [row(f"{split} {n}", "answer", split=split) for split in ("train", "dev", "guide") for n in range(4)]
    return written(tmp_path / "split.jsonl", [*rows, row(f"{shared} 1", "another answer", split="guide")])


@pytest.mark.parametrize("shared", ["train", "dev"])
def test_a_guide_split_that_shares_a_prompt_is_refused(tmp_path, tiny_model, shared):
    with pytest.raises(DataError, match=r"1 .* rows ask the same as a"):
        prepared(split_rows(tmp_path, shared), tiny_model)


@pytest.mark.parametrize("shared", ["train", "dev"])
def test_a_guide_split_that_shares_an_id_is_refused(tmp_path, tiny_model, shared):
    rows = [row(f"{split} 1", "answer", id=f"{split}-1", split=split) for split in ("train", "dev")]
    path = written(tmp_path / "ids.jsonl", [*rows, row("guide 1", "answer", id=f"{shared}-1", split="guide")])
    with pytest.raises(DataError, match=f"1 ids stand on more than one row: {shared}-1"):
        prepared(path, tiny_model)


def test_a_source_without_training_rows_is_refused_as_that(tmp_path, tiny_model):
    path = written(tmp_path / "none.jsonl", [row(f"ask {split}", "answer", split=split) for split in ("dev", "test")])
    with pytest.raises(DataError, match="no training rows"):
        prepared(path, tiny_model)


def test_the_sources_own_guide_split_is_used_and_can_be_sampled(tmp_path, tiny_model):
    path = split_rows(tmp_path, "guide")
    assert len(prepared(path, tiny_model).guide) == 5
    found = prepared(path, tiny_model, **{"data.guide.rows": 3})
    assert len(found.guide) == 3 and found.left_out == {"beyond data.guide.rows": 2}
    with pytest.raises(DataError, match="the split guide has 5"):
        prepared(path, tiny_model, **{"data.guide.rows": 6})
    assert prepared(path, tiny_model, **{"measure.ledger": None}).left_out == {
        "split guide is not used for training": 5
    }


def test_a_split_the_source_does_not_have_is_refused(grouped, tiny_model):
    with pytest.raises(ConfigError, match="is not a split of the training source"):
        prepared(grouped, tiny_model, **{"data.guide.split": "guide"})


@pytest.mark.parametrize(
    "text", ["measure: {ledger: null}", "measure: {ledger: {guide_every: null}}", "measure: {norms: null}"]
)
def test_null_switches_an_instrument_off_and_stays_off_in_what_is_written(tmp_path, text):
    from ghosttune.config.rendering import commented_yaml, plain_yaml

    (tmp_path / "run.yaml").write_text("data: {train: {path: builtin:rows}}\n" + text)
    config = load_config(tmp_path / "run.yaml")
    off = config.measure.norms.every if "norms" in text else config.measure.ledger.guide_every
    assert off is None
    for render in (plain_yaml, commented_yaml):
        (tmp_path / "again.yaml").write_text(render(config))
        assert load_config(tmp_path / "again.yaml") == config
