"""Clusters of a store are those of spherical k-means on all its rows at once, and those that were planted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from ghostgrad.clusters import NOWHERE, spherical_clusters
from ghostgrad.store import GradientStore


def filled(folder: Path, rows: torch.Tensor, dtype: torch.dtype = torch.float32) -> GradientStore:
    with GradientStore.create(folder, size=rows.shape[1], dtype=dtype, meaning={}) as store:
        store.append([f"row-{n}" for n in range(len(rows))], rows)
    return GradientStore.read(folder)


def slow_clusters(rows: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(labels, centres) the obvious way in float64."""
    directions, labels = torch.nn.functional.normalize(rows.double(), dim=1), None
    centres = torch.nn.functional.normalize(centres.double(), dim=1)
    while True:
        found = torch.stack([(directions * centre).sum(1) for centre in centres], 1).argmax(1)
        if labels is not None and torch.equal(found, labels):
            return labels, centres
        labels = found
        for number in labels.unique().tolist():
            total = directions[labels == number].sum(0)
            centres[number] = total / total.norm()


def test_they_equal_the_obvious_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghostgrad.reading.BLOCK_NUMBERS", 8 * 7)
    monkeypatch.setattr("ghostgrad.reading.PART_ROWS", 20)
    torch.manual_seed(0)
    rows = torch.randn(101, 8) + 0.3
    found = spherical_clusters(filled(tmp_path, rows), rows[:5])
    labels, centres = slow_clusters(rows, rows[:5])
    assert torch.equal(found.labels, labels) and len(labels.unique()) == 5
    torch.testing.assert_close(found.centres.double(), centres, rtol=1e-5, atol=1e-6)
    expected = torch.cosine_similarity(rows, found.centres[labels])
    torch.testing.assert_close(found.cosines, expected, rtol=1e-5, atol=1e-6)


def test_planted_directions_of_any_length_are_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    planted = torch.arange(3).repeat_interleave(torch.tensor([60, 25, 8]))
    directions, _ = torch.linalg.qr(torch.randn(64, 3))
    rows = (directions.mT[planted] + 0.05 * torch.randn(93, 64)) * torch.logspace(-3, 3, 93)[torch.randperm(93), None]
    store = filled(tmp_path, rows, torch.bfloat16)
    found = spherical_clusters(store, rows[[0, 61, 90]])
    assert adjusted_rand_score(planted, found.labels) == 1


def test_rows_that_are_0_are_in_no_cluster_and_lost_centres_stay(tmp_path: Path) -> None:
    rows = torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    found = spherical_clusters(filled(tmp_path, rows), torch.tensor([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]))
    assert found.labels.tolist() == [0, 0, NOWHERE, 1]
    assert torch.equal(found.centres[2], torch.tensor([-1.0, 0.0])) and found.cosines[2] == 0
    with pytest.raises(ValueError, match=r"expected \[k, 2\]"):
        spherical_clusters(filled(tmp_path / "other", rows), torch.ones(2, 3))
