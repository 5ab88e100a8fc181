"""Copies are the nearest rows and the first groups; groups are what the pairs connect."""

from __future__ import annotations

import pytest
import torch

from ghosttune.choosing.neighbours import _connected, dedupe, similar
from ghosttune.errors import InputError


@pytest.mark.parametrize("checkpoints", [["best"], ["all"]])
def test_copies_are_nearest(opened, slow_row, checkpoints):
    found = similar(opened, "copy-b", checkpoints=checkpoints, top=26)
    assert {row.example_id for row in found[:2]} == {"row-5", "copy-a"}
    assert found[0].cosine == pytest.approx(1, abs=1e-5) and found[2].cosine < 0.9
    assert len(found) == 26 and "copy-b" not in {row.example_id for row in found}
    steps = (3, 6) if checkpoints == ["all"] else (6,)
    features = {row.example_id: row for row in opened.train.features}
    expected = [
        torch.cosine_similarity(slow_row([features["copy-b"]], s), slow_row([features[found[5].example_id]], s), dim=0)
        for s in steps
    ]
    assert found[5].cosine == pytest.approx(float(sum(expected)) / len(steps), abs=1e-4)


def test_planted_duplicates_are_found_first(opened):
    groups = dedupe(opened, cosine=0.9)
    members = [[row.example_id for row in group.rows] for group in groups]
    assert sorted(map(set, members[:2]), key=len) == [{"row-8", "copy-c"}, {"row-5", "copy-a", "copy-b"}]
    assert all(group.cosine == pytest.approx(1, abs=1e-5) for group in groups[:2])
    assert all(row.cosine == pytest.approx(1, abs=1e-5) for group in groups[:2] for row in group.rows)
    assert {row[0] for row in members[:2]} == {"row-5", "row-8"}  # the first of the data stands first
    assert all(group.cosine < 0.999 for group in groups[2:])


def test_groups_are_what_the_pairs_connect():
    pairs = [("a", "b", 0.9), ("c", "d", 0.99), ("b", "c", 0.7), ("e", "f", 0.8), ("a", "d", 0.95)]
    found = sorted((weakest, sorted(members)) for weakest, members in _connected(pairs))
    assert found == [(0.8, ["e", "f"]), (0.9, ["a", "b", "c", "d"])]


def test_wrong_requests(opened, trained):
    with pytest.raises(InputError, match="no row of train is called 'row-55'; did you mean row-5"):
        similar(opened, "row-55")
    for cosine in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="must be above 0 and at most 1"):
            dedupe(opened, cosine=cosine)
    with pytest.raises(InputError, match="make them: `ghosttune index"):
        similar(trained, "row-5", device="cpu")
