"""A selection keeps what it says, gives a reason for every row, and trains; the rows that judge stay as they were."""

from __future__ import annotations

import json
import statistics

import pytest
import torch

from ghosttune.choosing.attribute import scored
from ghosttune.choosing.select import select
from ghosttune.config.loading import load_config
from ghosttune.errors import InputError
from ghosttune.run.tables import read_table
from ghosttune.stages.prepare import prepare


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def slow_scores(opened, slow_row, by) -> dict[str, float]:
    """The score of each row by definition."""
    features = opened.train.features
    if by == "value":
        table = read_table(opened.run, "values").to_pydict()
        return dict(zip(table["example_id"], table["standing"], strict=True))
    if by == "similarity":
        found = scored(opened, opened.train, opened.prepared.guide.features, [6], "cosine").scores
        return dict(zip(opened.train.ids, found.tolist(), strict=True))
    if by == "gradient_norm":
        return {row.example_id: float(slow_row([row], 6).norm()) for row in features}
    model = opened.at(6).eval()
    with torch.no_grad():
        return {
            row.example_id: float(opened.task.example_loss(model, opened.prepared.collator([row]))) / row.targets
            for row in features
        }


@pytest.mark.parametrize("by", ["value", "similarity", "gradient_norm", "loss"])
@pytest.mark.parametrize("lowest", [False, True])
def test_the_best_rows_are_kept(opened, slow_row, tmp_path, by, lowest):
    found = select(opened, tmp_path / "kept.jsonl", keep=8, by=by, lowest=lowest)
    kept, dropped = lines(tmp_path / "kept.jsonl"), lines(tmp_path / "kept.dropped.jsonl")
    assert (len(kept), len(dropped)) == (8, 19) == (len(found.kept), len(found.dropped))
    assert {row["example_id"] for row in kept + dropped} == set(opened.train.ids)
    exact = slow_scores(opened, slow_row, by)
    for row in kept + dropped:
        if row["score"] is None:
            assert exact[row["example_id"]] is None and row["reason"] == "has no standing"
        else:
            assert row["score"] == pytest.approx(exact[row["example_id"]], rel=1e-4, abs=1e-6)
    scores = [row["score"] for row in dropped if row["score"] is not None]
    if lowest:
        assert max(row["score"] for row in kept) <= min(scores)
    else:
        assert min(row["score"] for row in kept) >= max(scores)
    assert all("rank " in row["reason"] and "of which 8 are kept" in row["reason"] for row in kept)


def test_random_depends_on_the_seed_alone(opened, tmp_path):
    chosen = [
        {row.example_id for row in select(opened, tmp_path / "r.jsonl", keep=0.5, by="random", seed=seed).kept}
        for seed in (1, 1, 2)
    ]
    assert chosen[0] == chosen[1] != chosen[2] and len(chosen[0]) == 14


def test_thresholds(opened, slow_row, tmp_path):
    middle = statistics.median(slow_scores(opened, slow_row, "similarity").values())
    above = select(opened, tmp_path / "above.jsonl", above=middle, by="similarity")
    below = select(opened, tmp_path / "below.jsonl", below=middle, by="similarity")
    assert len(above.kept) == len(below.kept) == 13  # the middle one itself is neither
    assert {row.example_id for row in above.kept} < {row.example_id for row in below.dropped}
    assert all(row.score > middle and f"is above {middle:g}" in row.reason for row in above.kept)
    assert all(f"is not above {middle:g}" in row.reason for row in above.dropped)
    with pytest.raises(InputError, match=r"no row is kept: no similarity .* is above 2"):
        select(opened, tmp_path / "none.jsonl", above=2.0, by="similarity")


def test_every_kind_keeps_its_share(opened, tmp_path):
    select(opened, tmp_path / "kept.jsonl", keep=0.5, by="loss", stratify="kind")
    kinds = [row["kind"] for row in lines(tmp_path / "kept.jsonl")]
    sizes = [record.metadata["kind"] for record in opened.train.records]
    assert len(kinds) == 14 and abs(kinds.count("odd") - sizes.count("odd") / 2) <= 1
    assert "in kind=odd by loss at step 6" in lines(tmp_path / "kept.jsonl")[kinds.index("odd")]["reason"]


def test_a_selection_trains_and_the_judges_stay(opened, tmp_path):
    select(opened, tmp_path / "kept.jsonl", keep=0.4, by="similarity")
    kept = {row["example_id"] for row in lines(tmp_path / "kept.jsonl")}
    config = load_config(
        opened.run.config, overrides=["model.device=cpu", f"data.train.keep={tmp_path / 'kept.jsonl'}"]
    )
    prepared = prepare(config)
    assert {row.example_id for row in prepared.train_records} == kept and len(kept) == 11
    assert prepared.left_out["not in data.train.keep"] == 16
    assert str(tmp_path / "kept.jsonl") in prepared.fingerprints
    before = opened.prepared
    assert [r.example_id for r in prepared.dev_records] == [r.example_id for r in before.dev_records]
    assert [r.example_id for r in prepared.guide_records] == [r.example_id for r in before.guide_records]


def test_a_selection_is_also_a_file_of_rows(opened, tmp_path):
    """Every row reads back as it was, turn by turn, with its id."""
    select(opened, tmp_path / "kept.jsonl", keep=0.4, by="random")
    again = opened.rows(tmp_path / "kept.jsonl")
    assert len(again.records) == 11
    for record in again.records:
        original = opened.train.record(record.example_id)
        assert record.turns == original.turns
        assert set(record.metadata) == {"kind", "score", "reason"}


def test_rows_of_a_file_can_be_selected_from(opened, tmp_path):
    pool = [{"id": f"p{n}", "prompt": f"Say red number {n}", "completion": f"red {n}"} for n in range(5)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pool))
    found = select(opened, tmp_path / "kept.jsonl", keep=2, by="loss", data=tmp_path / "pool.jsonl")
    assert {row.example_id for row in found.kept} < {"p0", "p1", "p2", "p3", "p4"}
    with pytest.raises(InputError, match="only rows that trained have a value"):
        select(opened, tmp_path / "kept.jsonl", keep=2, data=tmp_path / "pool.jsonl")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "give one of"),
        ({"keep": 0.5, "above": 1.0}, "give one of"),
        ({"keep": 0.0}, "--keep is 0; give a share"),
        ({"keep": 2.5}, "--keep is 2.5; give a share"),
        ({"keep": float("nan")}, "--keep is nan"),
        ({"keep": 28}, "asks for 28 rows, and 2\\d of 27 rows have a standing"),
        ({"keep": 0.001}, "asks for 0 rows"),
        ({"above": 0.0, "lowest": True}, "a threshold has its side"),
        ({"above": 0.0, "stratify": "kind"}, "a threshold has its side"),
        ({"keep": 5, "by": "beauty"}, "cannot be selected by 'beauty'; known are value, similarity"),
        ({"keep": 5, "stratify": "colour"}, "no row has a column 'colour'; there are kind"),
        ({"keep": 5, "query": "x.jsonl"}, "--query does nothing for a selection by value; it is for similarity"),
        ({"keep": 5, "similarity": "dot"}, "--similarity does nothing for a selection by value"),
        ({"keep": 5, "by": "loss", "similarity": "cosine"}, "--similarity does nothing for a selection by loss"),
        ({"keep": 5, "checkpoints": ["last"]}, "--checkpoint does nothing .* by value; it is for similarity, loss"),
        ({"keep": 5, "by": "random", "checkpoints": ["last"]}, "--checkpoint does nothing for a selection by random"),
        ({"keep": 5, "seed": 1}, "--seed does nothing for a selection by value; it is for random"),
        ({"keep": 5, "by": "similarity", "similarity": "bm25"}, "cannot be scored by 'bm25'"),
    ],
)
def test_wrong_requests(opened, tmp_path, asked, message):
    with pytest.raises(InputError, match=message):
        select(opened, tmp_path / "kept.jsonl", **asked)
    assert not (tmp_path / "kept.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"example_id": "row-99"}', "names 1 rows that the data does not have: row-99"),
        ('{"example_id": "dev-1"}', "names none of the 27 rows that could train"),
        ('{"id": "row-1"}', "rows without a text as their example_id"),
        ("", "holds no rows"),
        (None, "is not a file"),
    ],
)
def test_a_file_that_names_no_rows_is_refused(opened, tmp_path, text, message):
    path = tmp_path / "kept.jsonl"
    if text is not None:
        path.write_text(f"{text}\n")
    config = load_config(opened.run.config, overrides=["model.device=cpu", f"data.train.keep={path}"])
    with pytest.raises(InputError, match=message):
        prepare(config)
