"""A store is read in any number of threads, with the same results, in less memory than it has bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ghostgrad.clusters import spherical_clusters
from ghostgrad.influence import norms, scores, top_k
from ghostgrad.store import GradientStore, StoreError


@pytest.fixture
def threads() -> Iterator[None]:
    """The number of torch's threads may be changed."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def filled(folder: Path, rows: torch.Tensor, dtype: torch.dtype) -> GradientStore:
    with GradientStore.create(folder, size=rows.shape[1], dtype=dtype, meaning={}) as store:
        store.append([f"row-{n}" for n in range(len(rows))], rows)
    return GradientStore.read(folder)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("queries", [1, 30])
def test_any_number_of_threads_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queries: int) -> None:
    monkeypatch.setattr("ghostgrad.reading.PART_ROWS", 100)
    torch.manual_seed(0)
    rows, asked = torch.randn(1234, 1500), torch.randn(queries, 1500)
    rows[700:800] = rows[:100]  # ties, over the border of two parts
    store = filled(tmp_path, rows, torch.bfloat16)
    exact = asked.double() @ rows.bfloat16().double().mT
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        best = top_k(store, asked, 9, similarity="dot")
        found.append((scores(store, asked, "cosine"), norms(store), best, spherical_clusters(store, rows[:4])))
        assert torch.get_num_threads() == count and threads_of_a_new_one() == count
    for other in found[1:]:
        assert torch.equal(other[0], found[0][0]) and torch.equal(other[1], found[0][1])
        assert [one.ids for one in other[2]] == [one.ids for one in found[0][2]]
        assert torch.equal(other[3].labels, found[0][3].labels) and torch.equal(other[3].centres, found[0][3].centres)
    cosines = exact / asked.double().norm(dim=1, keepdim=True) / rows.bfloat16().double().norm(dim=1)
    assert (found[0][0] - cosines).abs().max() < 1e-6  # sums of 1,500 products in float32 are this near
    order = torch.argsort(exact, descending=True, stable=True)[:, :9].tolist()
    assert [[f"row-{n}" for n in own] for own in order] == [one.ids for one in found[0][2]]


def threads_of_a_new_one() -> int:
    found: list[int] = []
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join(timeout=150)
    return found[0]


@pytest.mark.usefixtures("threads")
def test_what_fails_in_a_thread_is_raised(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    store = filled(tmp_path, torch.randn(50, 8), torch.float32)
    with open(tmp_path / "rows.bin", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(StoreError, match=r"rows\.bin ends before row 50"):
        norms(store)
    assert torch.get_num_threads() == 2


ASKING = """
import resource, sys
import torch
from ghostgrad.clusters import spherical_clusters
from ghostgrad.curvature import preconditioned
from ghostgrad.influence import norms, scores, top_k
from ghostgrad.store import GradientStore

store = GradientStore.read_sealed(sys.argv[1])
torch.ones(300, 300) @ torch.ones(300, 300)  # what libraries keep for themselves
held = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (held + (64 << 20), -1))
asked = store.rows(["row-7", "row-70"]).float()
assert preconditioned(store, asked, 0.1, [(8, 8)] * (store.size // 64)).isfinite().all()
torch.set_num_threads(2)
best = top_k(store, asked, 3, similarity="cosine")
assert [one.ids[0] for one in best] == ["row-7", "row-70"]
assert scores(store, asked, "dot").shape == (2, len(store)) and len(norms(store)) == len(store)
assert spherical_clusters(store, asked).labels[[7, 70]].tolist() == [0, 1]
try:
    store.rows(store.ids)
except RuntimeError as error:
    assert "allocate" in str(error), error
    print("asked")
"""


def test_a_store_that_does_not_fit_into_memory_is_asked(tmp_path: Path) -> None:
    """125 MiB of rows where 64 MiB may be taken (a thread alone takes 8); reading them all at once cannot be done."""
    block = torch.randn(1000, 4096)
    with GradientStore.create(tmp_path, size=4096, dtype=torch.bfloat16, meaning={}) as store:
        for first in range(0, 16_000, 1000):
            store.append([f"row-{n}" for n in range(first, first + 1000)], block.roll(first, 1))
        store.seal()
    command = [sys.executable, "-c", ASKING, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    environment["MALLOC_ARENA_MAX"] = "1"  # on a busy machine threads wait, and each then takes an arena of its own
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0 and done.stdout == "asked\n", done.stderr
