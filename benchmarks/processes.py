"""Do several processes give what one gives, whatever they share? One table, in float64.

    python benchmarks/processes.py [--processes 2 4] [--out runs/processes]

A small random Llama and thirty rows; 9 updates of 16 rows, the last of an epoch of 6, of which every process has its
part. `rows` are processes that share rows (DDP), `rows and base` such as share the base out besides (`train.fsdp`,
FSDP2), over gloo. Each is compared with one process: largest difference of a number in any table, of the largest of its
column, and of a trained weight; ids, counts and the order of rows must be equal, and the answers to dev prompts too.
`kill -9` ends one process after the first checkpoint, and the run is resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from quick import launch
from safetensors.numpy import load_file

from ghosttune.config.loading import load_config
from ghosttune.models.loading import load_model
from ghosttune.proving.specimens import write_model, write_rows
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import read_table
from ghosttune.workflows.train import resume, train

ROWS = 16
"""Of an update, in all processes together."""

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "phases": {"phases": "both@0-3 > mlp@3-6 > attention@6- rewarm 2"},
    "accumulation": {"train.gradient_accumulation_steps": 2},
    "online selection": {"data.online_selection": {"by": "value", "candidates": 2}},
    "kill -9, resume": {},
}

SHARED = {"rows": {}, "rows and base": {"train.fsdp": True}}

TABLES = ("norms", "ledger", "module_steps", "values", "selection")


def settings(folder: Path, kind: str, processes: int) -> dict[str, Any]:
    """Of a run in which every update has the same rows, however many processes share them."""
    own = KINDS[kind]
    return {
        "model.name": str(folder / "model"),
        "model.device": "cpu",
        "data.train.path": str(folder / "rows.jsonl"),
        "data.dev.fraction": 0.1,
        "data.guide.rows": 5,
        "data.max_length": 128,
        "train.max_steps": 9,
        "train.per_device_train_batch_size": ROWS // processes // own.get("train.gradient_accumulation_steps", 1),
        "train.learning_rate": 0.01,
        "train.warmup_steps": 2,
        "train.eval_steps": 3,
        "train.save_steps": 3,
        "train.weight_decay": 0.1,
        "measure.norms.effective": None,
        "measure.ledger.guide_every": 2,
        "evaluate.limit": 2,
        "evaluate.max_new_tokens": 4,
        **own,
    }


def worker(out: Path, overrides: dict[str, Any]) -> None:
    """One process of a run; it goes on where there is one."""

    def in_float64(*arguments: Any) -> Any:
        return load_model(*arguments).double()

    with patch("ghosttune.stages.model.load_model", in_float64):
        if RunDir(out).exists:
            resume(out)
        else:
            train(load_config(overrides=[f"{path}={json.dumps(value)}" for path, value in overrides.items()]), out)


def started(out: Path, overrides: dict[str, Any], count: int) -> list[subprocess.Popen[bytes]]:
    """So many processes of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)} if count > 1 else {}
    command = [sys.executable, __file__, "--worker", str(out), json.dumps(overrides)]
    found = []
    for rank in range(count):
        place = group | sizes | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
        with open(out.with_name(f"{out.name}-{rank}.log"), "ab") as said:
            found.append(subprocess.Popen(command, env=os.environ | place, stdout=said, stderr=said))
    return found


def trained(out: Path, overrides: dict[str, Any], count: int, killed: bool) -> RunDir:
    """The finished run; SystemExit with what its processes said where one failed."""
    shutil.rmtree(out, ignore_errors=True)
    if killed:
        begun = started(out, overrides, count)
        while not RunDir(out).checkpoint_steps() and all(process.poll() is None for process in begun):
            time.sleep(0.01)
        begun[-1].send_signal(signal.SIGKILL)
        for process in begun:
            process.wait(timeout=600)
        assert RunDir(out).read_record()["status"] != "finished", "it was over before it was killed"
    for rank, process in enumerate(started(out, overrides, count)):
        if process.wait(timeout=600):
            sys.exit(out.with_name(f"{out.name}-{rank}.log").read_text())
    return RunDir(out)


def difference(one: RunDir, other: RunDir) -> dict[str, float]:
    """Of numbers and weights, as the module says; AssertionError where anything else differs."""
    worst = 0.0
    for name in TABLES:
        if not one.table(name).exists():
            continue
        left, right = read_table(one, name), read_table(other, name)
        numbers = [column for column in left.column_names if str(left[column].type) == "double"]
        keys = [(column, "ascending") for column in left.column_names if column not in numbers]
        left, right = left.sort_by(keys), right.sort_by(keys)
        for column in left.column_names:
            if column not in numbers:
                assert left[column].equals(right[column]), f"{name}.{column} of {one.path} and {other.path}"
                continue
            expected, found = (np.array(table[column].to_pylist(), float) for table in (left, right))
            assert (np.isnan(expected) == np.isnan(found)).all(), f"{name}.{column}"
            worst = max(worst, float(np.nanmax(np.abs(found - expected)) / max(np.nanmax(np.abs(expected)), 1e-300)))
    said = [(run.path / "predictions" / "dev.jsonl").read_bytes() for run in (one, other)]
    assert said[0] == said[1], f"answers of {one.path} and {other.path}"
    expected, found = (load_file(run.adapter / "adapter_model.safetensors") for run in (one, other))
    return {"tables": worst, "weights": max(float(np.abs(found[name] - expected[name]).max()) for name in expected)}


def main(arguments: list[str]) -> None:
    """Trains every arm and prints the table."""
    if arguments[:1] == ["--worker"]:
        worker(Path(arguments[1]), json.loads(arguments[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--out", type=Path, default=Path("runs/processes"))
    given = parser.parse_args(arguments)
    folder = given.out.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl")
    print("| run | processes | shared | tables | weights |\n|---|--:|---|--:|--:|", flush=True)
    for kind in given.kinds:
        place = folder / "".join(letter for letter in kind if letter.isalpha())
        one = trained(place.with_name(f"{place.name}-1"), settings(folder, kind, 1), 1, False)
        for count in given.processes:
            for shared, changes in SHARED.items():
                own = settings(folder, kind, count) | changes
                name = f"{place.name}-{count}-{'fsdp' if changes else 'ddp'}"
                other = trained(place.with_name(name), own, count, kind.startswith("kill"))
                found = difference(one, other)
                print(f"| {kind} | {count} | {shared} | {found['tables']:.1e} | {found['weights']:.1e} |", flush=True)


if __name__ == "__main__":
    launch(main, "--processes 2 --kinds plain")
