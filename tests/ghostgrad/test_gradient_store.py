"""The store keeps every row once, through kills, and refuses rows of another meaning; queries equal brute force."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ghostgrad.influence import norms, pairs_above, scores, top_k
from ghostgrad.store import GradientStore, StoreError
from processes import limited

MEANING = {"sketch": {"seed": 1, "kind": "gaussian"}, "checkpoint": "step-10"}


def filled(folder: Path, rows: torch.Tensor, dtype: torch.dtype = torch.float32) -> GradientStore:
    with GradientStore.create(folder, size=rows.shape[1], dtype=dtype, meaning=MEANING) as store:
        store.append([f"row-{n}" for n in range(len(rows))], rows)
    return GradientStore.read(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = torch.randn(10, 6)
    store = filled(tmp_path, rows, dtype)
    assert len(store) == 10 and "row-3" in store and "row-10" not in store
    assert torch.equal(store.rows(["row-7", "row-2"]), rows[[7, 2]].to(dtype))
    blocks = [(start, block.clone()) for start, block in store.blocks(4)]
    assert [start for start, _ in blocks] == [0, 4, 8]
    assert torch.equal(torch.cat([block for _, block in blocks]), rows.to(dtype))


def test_other_meanings_are_refused_by_name(tmp_path: Path) -> None:
    filled(tmp_path, torch.randn(2, 3))
    other = {"sketch": {"seed": 2, "kind": "gaussian"}, "checkpoint": "step-10"}
    with pytest.raises(StoreError, match=r"sketch\.seed is 1, asked for 2"):
        GradientStore.append_to(tmp_path, meaning=other)
    with pytest.raises(StoreError, match="already holds"):
        GradientStore.create(tmp_path, size=3, dtype=torch.float32, meaning=MEANING)
    with pytest.raises(StoreError, match="no manifest"):
        GradientStore.read(tmp_path / "elsewhere")
    text = (tmp_path / "manifest.json").read_text().replace('"format": 1', '"format": 9')
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match="format 9"):
        GradientStore.read(tmp_path)


def test_bad_rows_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    store = GradientStore.create(tmp_path, size=3, dtype=torch.float16, meaning={})
    store.append(["a"], torch.ones(1, 3))
    for ids, rows, message in (
        (["a"], torch.ones(1, 3), "already stored"),
        (["b", "b"], torch.ones(2, 3), "twice"),
        (["b"], torch.ones(1, 4), r"expected \[1, 3\]"),
        (["b"], torch.full((1, 3), 1e5), "not finite"),
        (["b"], torch.full((1, 3), float("nan")), "not finite"),
        (["b"], torch.full((1, 3), 1e-9), "vanish"),
        (["b\nc"], torch.ones(1, 3), "line break"),
    ):
        with pytest.raises(StoreError, match=message):
            store.append(ids, rows)
    store.close()
    reader = GradientStore.read(tmp_path)
    assert reader.ids == ["a"]
    with pytest.raises(StoreError, match="not open for appending"):
        reader.append(["b"], torch.ones(1, 3))
    with pytest.raises(StoreError, match="not in"):
        reader.rows(["zzz"])


@pytest.mark.parametrize("rows_kept,ids_kept", [(2.5, 3), (3, 2.5), (1, 3), (0.2, 3), (3, 0)])
def test_a_half_written_end_is_cut_off(tmp_path: Path, rows_kept: float, ids_kept: float) -> None:
    rows = torch.randn(3, 4)
    filled(tmp_path, rows)
    os.truncate(tmp_path / "rows.bin", int(rows_kept * 16))
    os.truncate(tmp_path / "ids.txt", int(ids_kept * len("row-0\n")))
    whole = min(int(rows_kept), int(ids_kept))
    assert len(GradientStore.read(tmp_path)) == whole
    with GradientStore.append_to(tmp_path, meaning=MEANING) as store:
        missing = [n for n in range(3) if f"row-{n}" not in store]
        store.append([f"row-{n}" for n in missing], rows[missing])
    again = GradientStore.read(tmp_path)
    assert torch.equal(again.rows([f"row-{n}" for n in range(3)]), rows)


def sealed(folder: Path, rows: torch.Tensor) -> Path:
    filled(folder, rows)
    with GradientStore.append_to(folder, meaning=MEANING) as store:
        store.seal({"error": 0.5})
    return folder


def test_a_sealed_store_is_whole_until_it_is_appended_to(tmp_path: Path) -> None:
    rows = torch.randn(3, 4)
    filled(tmp_path, rows)
    with pytest.raises(StoreError, match="not complete: it holds 3 rows so far"):
        GradientStore.read_sealed(tmp_path)
    store = GradientStore.read_sealed(sealed(tmp_path / "sealed", rows))
    assert store.notes == {"error": 0.5} and len(store) == 3
    store.require({"checkpoint": "step-10"})
    with pytest.raises(StoreError, match=r"checkpoint is 'step-10', asked for 'step-20'"):
        store.require({"checkpoint": "step-20"})
    with GradientStore.append_to(tmp_path / "sealed", meaning=MEANING) as store:
        store.append(["row-3"], rows[:1])
    with pytest.raises(StoreError, match="not complete: it holds 4 rows"):
        GradientStore.read_sealed(tmp_path / "sealed")


@pytest.mark.parametrize("name", ["rows.bin", "ids.txt", "manifest.json", "seal.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damage_to_a_sealed_store_is_found(tmp_path: Path, name: str, damage: str) -> None:
    file = sealed(tmp_path, torch.randn(3, 4)) / name
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        half = len(whole) // 2
        file.write_bytes(
            whole[:half] if damage == "cut" else whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :]
        )
    with pytest.raises(StoreError):
        GradientStore.read_sealed(tmp_path)


def test_many_differences_are_counted(tmp_path: Path) -> None:
    GradientStore.create(tmp_path, size=1, dtype=torch.float32, meaning={f"m{n}": n for n in range(9)}).close()
    with pytest.raises(StoreError, match=r"m0 is 0, asked for 1; .*m4 is 4, asked for 5; and 4 more$"):
        GradientStore.append_to(tmp_path, meaning={f"m{n}": n + 1 for n in range(9)})


WRITER = """
import sys, torch
from ghostgrad.store import GradientStore
store = GradientStore.append_to(sys.argv[1], meaning={})
start = len(store)
print("ready", flush=True)
for n in range(start, 10**9):
    store.append([f"row-{n}"], torch.full((1, 2000), float(n % 1000)))
"""


def test_killed_while_writing_no_row_is_lost_or_doubled(tmp_path: Path) -> None:
    GradientStore.create(tmp_path, size=2000, dtype=torch.float32, meaning={}).close()
    for _ in range(2):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with limited(subprocess.Popen(command, stdout=subprocess.PIPE)) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
            time.sleep(0.1)
            writer.send_signal(signal.SIGKILL)
    store = GradientStore.read(tmp_path)
    assert len(store) > 2 and store.ids == [f"row-{n}" for n in range(len(store))]
    for start, block in store.blocks(64):
        assert torch.equal(block[:, 0], torch.arange(start, start + len(block)).remainder(1000).float())


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("queries", [1, 3])
def test_top_k_equals_brute_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, similarity: str, largest: bool, queries: int
) -> None:
    monkeypatch.setattr("ghostgrad.reading.BLOCK_NUMBERS", 8 * 7)
    monkeypatch.setattr("ghostgrad.reading.PART_ROWS", 20)
    torch.manual_seed(0)
    rows, asked = torch.randint(-3, 4, (101, 8)).float(), torch.randint(-3, 4, (queries, 8)).float()
    store = filled(tmp_path, rows)
    left_out = ["row-5", "row-50", "not there"]
    found = top_k(store, asked, 10, similarity=similarity, largest=largest, without=left_out)
    exact = asked @ rows.mT
    if similarity == "cosine":
        exact = exact / asked.norm(dim=1, keepdim=True) / rows.norm(dim=1)
    exact[:, [5, 50]] = float("-inf") if largest else float("inf")
    for place, nearest in enumerate(found):
        order = torch.argsort(exact[place], descending=largest, stable=True)[:10]
        torch.testing.assert_close(nearest.scores, exact[place][order], rtol=1e-5, atol=1e-6)
        if similarity == "dot":  # exact in integers, so that ties are ties
            assert nearest.ids == [f"row-{n}" for n in order.tolist()]


def test_asking_for_more_rows_than_there_are(tmp_path: Path) -> None:
    store = filled(tmp_path, torch.randn(3, 4))
    assert len(top_k(store, torch.randn(1, 4), 10, similarity="dot")[0].ids) == 3
    with pytest.raises(ValueError, match="accepted are"):
        top_k(store, torch.randn(1, 4), 10, similarity="euclid")
    with pytest.raises(ValueError, match=r"expected \[q, 4\]"):
        top_k(store, torch.randn(1, 5), 10, similarity="dot")


def test_planted_duplicates_are_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows = torch.randn(300, 64)
    rows[40] = 2 * rows[123]
    rows[41] = rows[123] + 0.1 * torch.randn(64)
    store = filled(tmp_path, rows, torch.bfloat16)
    found = top_k(store, store.rows(["row-123"]), 3, similarity="cosine", without=["row-123"])[0]
    assert found.ids[:2] == ["row-40", "row-41"] and found.scores[2] < 0.7


def test_all_scores_and_lengths_equal_brute_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghostgrad.reading.BLOCK_NUMBERS", 8 * 7)
    monkeypatch.setattr("ghostgrad.reading.PART_ROWS", 20)
    rows, asked = torch.randn(101, 8), torch.randn(3, 8)
    store = filled(tmp_path, rows)
    torch.testing.assert_close(scores(store, asked, "dot"), asked @ rows.mT, rtol=1e-5, atol=1e-5)
    expected = asked @ rows.mT / asked.norm(dim=1, keepdim=True) / rows.norm(dim=1)
    torch.testing.assert_close(scores(store, asked[:1], "cosine"), expected[:1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norms(store), rows.norm(dim=1))


def test_pairs_equal_brute_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghostgrad.influence.QUERY_NUMBERS", 3 * 30)
    monkeypatch.setattr("ghostgrad.reading.BLOCK_NUMBERS", 3 * 7)
    monkeypatch.setattr("ghostgrad.reading.PART_ROWS", 20)
    rows = torch.randn(101, 3)
    rows[17] = 0
    found = {(first, second): cosine for first, second, cosine in pairs_above(filled(tmp_path, rows), 0.95)}
    cosines = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=2)
    expected = [(i, j) for i in range(101) for j in range(i + 1, 101) if cosines[i, j] >= 0.95]
    assert sorted(found) == expected and len(expected) > 20
    assert all(cosine == pytest.approx(float(cosines[pair]), abs=1e-5) for pair, cosine in found.items())
