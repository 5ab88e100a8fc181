"""Clusters of a run's rows: skills that were planted come out, and what is said of each row is so."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from ghostgrad.store import GradientStore
from ghosttune.choosing.clustering import cluster
from ghosttune.choosing.index import index
from ghosttune.choosing.opened import OpenedRun
from ghosttune.config.loading import load_config
from ghosttune.data.sources import builtin_rows
from ghosttune.errors import DataError, InputError, RunError
from ghosttune.proving.learned import SPELT, spelling, write
from ghosttune.workflows.train import train


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def two_skills(tmp_path_factory) -> OpenedRun:
    """The built-in model after three steps on ten order forms, which are shipped, and ten words to spell."""
    folder = tmp_path_factory.mktemp("two-skills")
    kept = ("id", "prompt", "completion", "split")
    shipped = [{name: row[name] for name in kept} | {"skill": "form"} for row in lines(builtin_rows())]
    forms, dev = ([row for row in shipped if row["split"] == split] for split in ("train", "dev"))
    spelt = [row | {"skill": "spelling"} for row in spelling(SPELT)]
    write(folder / "rows.jsonl", [*forms[: len(SPELT)], *spelt, *dev[:5]])
    settings = {
        "data.train.path": str(folder / "rows.jsonl"),
        "model.device": "cpu",
        "train.max_steps": 3,
        "train.warmup_steps": 0,
        "measure.norms.every": None,
        "measure.norms.effective": None,
        "measure.ledger.guide_every": None,
        "evaluate.limit": 0,
    }
    config = load_config(overrides=[f"{path}={json.dumps(value)}" for path, value in settings.items()])
    train(config, folder / "run")
    index(folder / "run", kind="standard@1", device="cpu")
    return OpenedRun(folder / "run", "cpu")


@pytest.mark.parametrize("seed", [0, 1])
def test_planted_skills_are_clusters(two_skills, tmp_path, seed):
    found = cluster(two_skills, 2, by="skill", seed=seed, out=tmp_path / "rows.jsonl", top=1)
    skills = two_skills.train.column("skill")
    written = lines(tmp_path / "rows.jsonl")
    assert adjusted_rand_score(list(skills.values()), [row["cluster"] for row in written]) == 1
    assert [row["example_id"] for row in written] == list(skills)
    assert sorted(next(iter(group.makeup)) for group in found.clusters) == ["form", "spelling"]
    assert [group.size for group in found.clusters] == [10, 10]


def test_what_is_said_of_rows_and_clusters(opened, tmp_path):
    found = cluster(opened, 4, by="kind", top=2, out=tmp_path / "rows.csv")
    with open(tmp_path / "rows.csv", newline="") as file:
        written = {row["example_id"]: row for row in csv.DictReader(file)}
    assert list(written) == opened.train.ids and found.rows == 27 and found.nowhere == 0
    store = opened.store(opened.train, 6)
    directions = torch.nn.functional.normalize(store.rows(opened.train.ids), dim=1)
    sizes = [group.size for group in found.clusters]
    assert sizes == sorted(sizes, reverse=True) and sum(sizes) == 27
    for group in found.clusters:
        places = [place for place, row in enumerate(written.values()) if row["cluster"] == str(group.number)]
        own = directions[places] @ torch.nn.functional.normalize(directions[places].sum(0), dim=0)
        assert len(places) == group.size and group.cosine == pytest.approx(float(own.mean()), abs=1e-5)
        to_centre = dict(zip([opened.train.ids[place] for place in places], own.tolist(), strict=True))
        best = sorted(to_centre.values(), reverse=True)[:2]  # by cosine: which of several copies is left to rounding
        assert [row.cosine for row in group.rows] == pytest.approx(best, abs=1e-5)
        for row in group.rows:
            record = opened.train.record(row.example_id)
            assert to_centre[row.example_id] == pytest.approx(row.cosine, abs=1e-5)
            assert row.content == {"prompt": record.prompt[-1].content, "completion": record.reference}
        kinds = [opened.train.column("kind")[opened.train.ids[place]] for place in places]
        assert group.makeup == {kind: kinds.count(kind) for kind in group.makeup} and len(kinds) == sum(
            group.makeup.values()
        )


def test_seeds_are_reproducible_and_copies_stay_together(opened, tmp_path):
    again = [cluster(opened, 5, seed=3, out=tmp_path / f"{n}.jsonl") for n in range(2)]
    assert again[0].clusters == again[1].clusters
    assert (tmp_path / "0.jsonl").read_bytes() == (tmp_path / "1.jsonl").read_bytes()
    numbers = {row["example_id"]: row["cluster"] for row in lines(tmp_path / "0.jsonl")}
    assert numbers["row-5"] == numbers["copy-a"] == numbers["copy-b"] and numbers["row-8"] == numbers["copy-c"]


def test_as_many_clusters_as_rows_and_one(opened):
    assert [group.size for group in cluster(opened, 1).clusters] == [27]
    many = cluster(opened, 27)
    assert len(many.clusters) == 24 and [group.size for group in many.clusters][:3] == [3, 2, 1]  # copies are one


def test_each_pass_is_told(opened):
    told: list[tuple[int, int]] = []
    cluster(opened, 3, tell=lambda number, moved: told.append((number, moved)))
    assert [number for number, _ in told] == list(range(1, len(told) + 1))
    assert told[0][1] == 27 and told[-1][1] == 0, "all find a cluster, and in the end none moves"


def test_rows_without_a_gradient_are_in_no_cluster(own_indexed, tmp_path):
    """As a store of half precision can hold them."""
    folder = own_indexed / "store" / "train" / "step-6"
    whole = GradientStore.read(folder)
    rows = whole.rows(whole.ids)
    rows[[whole.place("row-1"), whole.place("row-2")]] = 0
    for path in folder.iterdir():
        path.unlink()
    with GradientStore.create(folder, size=whole.size, dtype=whole.dtype, meaning=whole.manifest["meaning"]) as store:
        store.append(whole.ids, rows)
        store.seal({"error": None})
    found = cluster(own_indexed, 2, out=tmp_path / "rows.csv", device="cpu")
    assert found.nowhere == 2 and sum(group.size for group in found.clusters) == 25
    assert "row-1,,\n" in (tmp_path / "rows.csv").read_text()


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"clusters": 0}, InputError, "--clusters is 0; it must be from 1 to the number of rows, 27"),
        ({"clusters": 28}, InputError, "--clusters is 28"),
        ({"clusters": 2, "by": "colour"}, DataError, "no row has a column 'colour'; there are kind"),
        ({"clusters": 2, "out": "rows.txt"}, InputError, r"--out is rows\.txt; it must end in \.jsonl or \.csv"),
        ({"clusters": 2, "checkpoint": "4"}, RunError, "no checkpoint 4"),
    ],
)
def test_wrong_requests(opened, asked, error, message):
    with pytest.raises(error, match=message):
        cluster(opened, **asked)
