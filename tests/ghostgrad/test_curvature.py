"""Preconditioned queries equal the solution of the dense system, which is built here out of Kronecker products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ghostgrad import PROFILES, Sketcher
from ghostgrad.curvature import preconditioned
from ghostgrad.store import GradientStore


def filled(folder: Path, rows: np.ndarray) -> GradientStore:
    with GradientStore.create(folder, size=rows.shape[1], dtype=torch.float32, meaning={}) as store:
        store.append([f"row-{n}" for n in range(len(rows))], torch.from_numpy(rows).float())
    return GradientStore.read(folder)


def dense(rows: np.ndarray, shape: tuple[int, int], added: float, turned: bool = True) -> np.ndarray:
    """(F + λ) of one parameter, [O I, O I]."""
    gradients = rows.reshape(-1, *shape)
    basis = np.eye(rows.shape[1])
    if turned:
        outer = np.linalg.eigh(np.einsum("noi,npi->op", gradients, gradients))[1]
        inner = np.linalg.eigh(np.einsum("noi,noj->ij", gradients, gradients))[1]
        basis = np.kron(outer, inner)
    eigenvalues = ((rows @ basis) ** 2).mean(0)
    return (basis * eigenvalues) @ basis.T + added * np.eye(len(basis))


@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.parametrize("block", [1 << 20, 7 * 17])
def test_parameters_are_solved_by_themselves_in_their_own_basis(tmp_path, monkeypatch, count, block):
    """With fewer rows than numbers too, and in several reads of a few rows."""
    monkeypatch.setattr("ghostgrad.curvature.BLOCK_NUMBERS", block)
    random = np.random.default_rng(0)
    shapes, spans = [(3, 4), (1, 5)], [(0, 12), (12, 17)]
    rows, asked = (
        random.standard_normal((n, 17)).astype(np.float32).astype(float) * np.linspace(0.1, 3, 17) for n in (count, 2)
    )
    found = preconditioned(filled(tmp_path, rows), torch.from_numpy(asked), 0.1, shapes)
    added = 0.1 * (rows**2).mean()  # of all parameters together: turning a basis leaves the trace
    for (start, stop), shape in zip(spans, shapes, strict=True):
        expected = np.linalg.solve(dense(rows[:, start:stop], shape, added), asked[:, start:stop].T).T
        np.testing.assert_allclose(found[:, start:stop], expected, rtol=2e-4, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("count", [3, 40])
def test_a_vector_has_the_whole_fisher_matrix(tmp_path, count):
    random = np.random.default_rng(1)
    rows, asked = random.standard_normal((count, 12)), random.standard_normal((2, 12))
    fisher = rows.T @ rows / count
    damped = fisher + 0.1 * fisher.diagonal().mean() * np.eye(12)
    found = preconditioned(filled(tmp_path, rows), torch.from_numpy(asked), 0.1)
    np.testing.assert_allclose(found, np.linalg.solve(damped, asked.T).T, rtol=1e-3, atol=1e-4)


def test_a_long_side_keeps_its_coordinates(tmp_path, monkeypatch):
    monkeypatch.setattr("ghostgrad.curvature.LONGEST_SIDE", 2)
    random = np.random.default_rng(2)
    rows, asked = random.standard_normal((9, 12)), random.standard_normal((1, 12))
    found = preconditioned(filled(tmp_path, rows), torch.from_numpy(asked), 0.3, [(3, 4)])
    expected = np.linalg.solve(dense(rows, (3, 4), 0.3 * (rows**2).mean(), turned=False), asked.T).T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_parameter_without_gradients_is_divided_by_the_damping(tmp_path):
    """Which no row sees: its own numbers are 0 there."""
    rows = np.concatenate([np.ones((2, 4)), np.zeros((2, 3))], 1)
    found = preconditioned(filled(tmp_path, rows), torch.ones(1, 7), 0.1, [(2, 2), (1, 3)])
    torch.testing.assert_close(found[:, 4:], torch.full((1, 3), 1 / (0.1 * 4 / 7)))


def test_what_cannot_be_inverted_is_refused(tmp_path):
    store = filled(tmp_path / "some", np.ones((2, 3)))
    with pytest.raises(ValueError, match="above 0"):
        preconditioned(store, torch.ones(1, 3), 0.0)
    with pytest.raises(ValueError, match="do not cover rows of 3"):
        preconditioned(store, torch.ones(1, 3), 0.1, [(1, 2)])
    with pytest.raises(ValueError, match="no row other than 0"):
        preconditioned(filled(tmp_path / "none", np.zeros((2, 3))), torch.ones(1, 3), 0.1)


def test_a_sketch_knows_the_sides_of_its_parameters():
    sketcher = Sketcher({"b": (5,), "a": (64, 32)}, PROFILES["standard@1"], frozenset())
    assert sketcher.sides == [(16, 16), (1, 5)]
    assert [outer * inner for outer, inner in sketcher.sides] == [sketcher.width(name) for name in sketcher]
