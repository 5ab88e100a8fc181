"""Stores of gradients hold what one backward pass per row gives, each row once, and refuse what they do not hold."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ghostgrad.store import GradientStore
from ghosttune.choosing.attribute import attribute
from ghosttune.choosing.index import index, sketch_changes
from ghosttune.choosing.opened import OpenedRun
from ghosttune.config.loading import load_config
from ghosttune.errors import ConfigError, InputError, RunError
from ghosttune.workflows.check import check
from processes import limited


def test_whole_gradients_equal_one_backward_per_row(indexed, opened, slow_row):
    for step in (3, 6):
        store = GradientStore.read_sealed(indexed / "store" / "train" / f"step-{step}")
        features = opened.train.features
        assert sorted(store.ids) == sorted(row.example_id for row in features) and len(store) == 27
        expected = torch.stack([slow_row([row], step) for row in features])
        found = store.rows([row.example_id for row in features]).double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_two_checkpoints_differ(indexed):
    three, six = (GradientStore.read(indexed / "store" / "train" / f"step-{step}") for step in (3, 6))
    assert not torch.allclose(three.rows(["row-1"]), six.rows(["row-1"]), rtol=0.1)


def test_what_is_said_of_a_store(run):
    (first,) = index(run, device="cpu")
    assert first.exact and first.error is None and (first.rows, first.added) == (27, 27)
    assert first.numbers_per_row == sum(p.numel() for p in OpenedRun(run, "cpu").parameters.values())
    rows = Path(first.folder) / "rows.bin"
    assert first.bytes == rows.stat().st_size == 27 * 4 * first.numbers_per_row
    predicted = check(load_config(run / "config.yaml")).plan["index"]
    assert predicted == {"gradients": "whole", "numbers_per_row": first.numbers_per_row, "bytes": first.bytes}
    before = rows.stat().st_mtime_ns
    (again,) = index(run, device="cpu")
    assert again.added == 0 and rows.stat().st_mtime_ns == before


def test_sketches_estimate_cosines_within_their_error(run, opened, slow_gradient):
    """The error that is stated was measured on some rows and holds for the others."""
    changes = sketch_changes(size=64, side=4, dtype="float32", layers=["*q_proj*", "*mlp*"])
    (found,) = index(run, checkpoints=["6"], kind="standard@1", changes=changes, device="cpu")
    assert not found.exact and found.error is not None and 0 < found.error["cosine"] < 0.3
    assert found.error["pairs"] == 120
    columns = json.loads((Path(found.folder) / "manifest.json").read_text())["meaning"]["sketch"]["columns"]
    assert columns and all("q_proj" in name or "mlp" in name for name in columns)
    features = opened.train.features
    query = next(row for row in features if row.example_id == "row-7")
    record = opened.train.record("row-7")
    asked = attribute(run, prompt=record.prompt, completion=record.reference, top=27, device="cpu")
    seen = {row.example_id: row for row in asked.helpful + asked.harmful}
    assert len(seen) == 27 and all(row.error == pytest.approx(found.error["cosine"]) for row in seen.values())

    def own(row):
        return torch.cat([g.flatten() for name, g in slow_gradient([row], 6).items() if name in columns])

    exact = {row.example_id: torch.cosine_similarity(own(row), own(query), dim=0) for row in features}
    differences = torch.tensor([seen[name].score - float(exact[name]) for name in exact if name != "row-7"])
    assert 0 < differences.square().mean().sqrt() < 2 * found.error["cosine"]


def test_windows_of_one_row_stay_together():
    """Question answering cuts long texts; the gradient of a row is that of all its windows."""
    from ghosttune.training.sketching import row_batches

    class Window:
        def __init__(self, name, length):
            self.example_id, self.length = name, length

        def __len__(self):
            return self.length

    rows: list[Any] = [Window("a", 9), Window("b", 2), Window("a", 5), Window("c", 3), Window("d", 4), Window("a", 7)]
    batches = list(row_batches(rows, 3))
    assert [{name: len(own) for name, own in batch.items()} for batch in batches] == [
        {"b": 1, "c": 1, "d": 1},
        {"a": 3},
    ]


def test_rows_of_a_file_have_a_store_of_their_own(run, tmp_path, slow_row, opened):
    lines = [{"id": f"new-{n}", "prompt": f"Say pink number {n}", "completion": f"pink {n} é"} for n in range(2)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = index(run, tmp_path / "pool.jsonl", device="cpu", batch_size=1)
    assert found.rows == 2 and Path(found.folder).parts[-2:] == ("pool", "step-6")
    with pytest.raises(RunError, match="no gradients of its train rows at step 6; make them: `ghosttune index"):
        attribute(run, prompt="a", completion="b", device="cpu")
    (best,) = attribute(run, tmp_path / "pool.jsonl", data=tmp_path / "pool.jsonl", top=1, device="cpu").helpful
    assert best.content["completion"].endswith("é")
    changed = lines[0] | {"completion": "pink 5"}
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [changed, lines[1]]))
    with pytest.raises(RunError, match=r"rows\.sha256 is '.*', asked for '"):
        attribute(run, prompt="a", completion="b", data=tmp_path / "pool.jsonl", device="cpu")


def test_killed_and_taken_up_every_row_is_there_once(run, indexed):
    command = [sys.executable, "-m", "ghosttune", "index", str(run), "--batch-size", "1", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    ids = run / "store" / "train" / "step-6" / "ids.txt"
    with limited(subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)) as process:
        while process.poll() is None and not (ids.is_file() and ids.read_bytes().count(b"\n") >= 3):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    stored = GradientStore.read(ids.parent)
    assert 3 <= len(stored) < 27 and not GradientStore.is_sealed(ids.parent)
    with pytest.raises(RunError, match=rf"not complete: it holds {len(stored)} rows so far"):
        attribute(run, prompt="a", completion="b", device="cpu")
    with open(ids.parent / "rows.bin", "ab") as file:  # what a kill in the middle of a row leaves
        file.write(b"half a row")
    (found,) = index(run, device="cpu")
    assert found.added == 27 - len(stored)
    after = GradientStore.read_sealed(ids.parent)
    whole = GradientStore.read_sealed(indexed / "store" / "train" / "step-6")
    assert sorted(after.ids) == sorted(whole.ids)
    torch.testing.assert_close(after.rows(whole.ids), whole.rows(whole.ids), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 13, 26])
def test_cut_off_inside_a_batch_and_taken_up_it_has_the_same_bytes(own_indexed, rows):
    """The rows that are missing are computed beside those that are not: alone they would be rounded otherwise."""
    folder = own_indexed / "store" / "train" / "step-6"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    stored = GradientStore.read_sealed(folder)
    (folder / "seal.json").unlink()
    (folder / "ids.txt").write_text("".join(f"{name}\n" for name in stored.ids[:rows]))
    os.truncate(folder / "rows.bin", rows * stored.bytes_per_row)
    (found,) = index(own_indexed, device="cpu")
    assert found.added == 27 - rows
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["rows.bin", "ids.txt", "manifest.json", "seal.json"])
def test_damage_is_named(own_indexed, name):
    file = own_indexed / "store" / "train" / "step-6" / name
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(bytes(damaged))
    with pytest.raises(RunError, match="step-6 is damaged: "):
        attribute(own_indexed, prompt="a", completion="b", device="cpu")


def test_another_sketch_is_refused_and_the_difference_named(own_indexed):
    with pytest.raises(RunError, match=r"sketch\.options\.size is .*, asked for 32.*; and \d+ more"):
        index(own_indexed, kind="standard@1", changes={"size": 32, "side": 4}, device="cpu")


def test_a_store_of_other_weights_is_refused(own_indexed):
    stores = own_indexed / "store" / "train"
    shutil.rmtree(stores / "step-6")
    shutil.copytree(stores / "step-3", stores / "step-6")
    with pytest.raises(RunError, match=r"checkpoint\.step is 3, asked for 6; checkpoint\.weights is '"):
        attribute(own_indexed, prompt="a", completion="b", device="cpu")


def test_changed_training_rows_are_refused(own_indexed, tmp_path):
    config = (own_indexed / "config.yaml").read_text()
    rows = next(Path(word) for word in config.split() if word.endswith("rows.jsonl"))
    (tmp_path / "rows.jsonl").write_text(rows.read_text().replace("golden", "gilded"))
    (own_indexed / "config.yaml").write_text(config.replace(str(rows), str(tmp_path / "rows.jsonl")))
    with pytest.raises(InputError, match="changed since"):
        attribute(own_indexed, prompt="a", completion="b", device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoints": ["7"]}, "no checkpoint 7; it has best, last, all, 3, 6"),
        ({"kind": "standard"}, "no sketch is called 'standard'; did you mean standard@1"),
        ({"changes": {"layers": ("*nothing*",)}}, "match no parameter"),
        ({"changes": {"size": 4, "side": 3}}, "side 3 must be at least 1 and its square at most size 4"),
        ({"changes": {"kind": "gauss"}}, "kind is 'gauss'; accepted are gaussian"),
        ({"data": "/nowhere/rows.jsonl"}, "does not exist"),
        ({"kind": "exact@1", "changes": {"seed": 3, "kind": "gaussian"}}, "--projection, --seed would do nothing"),
    ],
)
def test_wrong_requests(trained, options, message):
    with pytest.raises(InputError, match=message):
        index(trained, device="cpu", **options)


def test_two_rows_tell_no_error(run, tmp_path):
    lines = [{"id": str(n), "prompt": f"Say {n}", "completion": str(n)} for n in range(2)]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="2 rows cannot tell the error of projections"):
        index(run, tmp_path / "two.jsonl", kind="compact@1", device="cpu")
    assert not (run / "store" / "two").exists()


def test_wrong_numbers_and_folders(trained, tmp_path):
    with pytest.raises(InputError, match="dtype is 'float8'; accepted are float32, float16, bfloat16"):
        sketch_changes(dtype="float8")
    with pytest.raises(RunError, match="does not exist"):
        index(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"model\.device"):
        index(trained, device="gpu")
