"""`torchrun` and `accelerate launch` start `ghosttune train` as they start any script: the run of `--processes 2`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from test_several_processes import SETTINGS, columns, command, trained
from typer.testing import CliRunner

from ghosttune.cli.main import app
from ghosttune.errors import InputError
from ghosttune.proving.specimens import write_rows
from ghosttune.run.directory import RunDir
from ghosttune.workflows.train import train
from processes import limited

TRAIN = ("-m", "ghosttune", "train")
TABLES = ("norms", "effective", "ledger", "module_steps", "values")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def started(*arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *arguments], env=environment, **options)


def node(number: int, port: int, *arguments: str) -> subprocess.Popen[str]:
    """One of two machines with one process each, which meet at a port of this one."""
    place = ["--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1"]
    meet = ["--master-addr", "127.0.0.1", "--master-port", str(port), "--local-addr", "127.0.0.1"]
    return started("-m", "torch.distributed.run", *place, *meet, *arguments)


@pytest.fixture(scope="module")
def expected(two_processes, tmp_path_factory, tiny_model) -> RunDir:
    """The run of `--processes 2`; its configuration lies beside it."""
    folder = tmp_path_factory.mktemp("launched")
    return trained(folder / "run", tiny_model, write_rows(folder / "rows.jsonl"), 2, 1, "--processes", "2")


@pytest.fixture
def config(expected) -> Path:
    return expected.path.with_suffix(".yaml")


def assert_same(found: RunDir, expected: RunDir) -> None:
    for name in TABLES:
        assert columns(found, name) == columns(expected, name), name
    assert found.read_record()["ledger"] == expected.read_record()["ledger"]


@pytest.mark.slow(seconds=40)
def test_torchrun_on_two_nodes(expected, config, tmp_path):
    out, port = tmp_path / "out", free_port()
    both = [node(number, port, *TRAIN, str(config), "--out", str(out)) for number in (0, 1)]
    with limited(both[0]) as first, limited(both[1]) as second:
        said, other = first.communicate(timeout=500)[0], second.communicate(timeout=500)[0]
        assert (first.returncode, second.returncode) == (0, 0), said + other
    assert_same(RunDir(out), expected)
    assert said.count("dev loss") > 3 and "dev loss" not in other and "steps " not in other, "one speaks for all"


@pytest.mark.slow(seconds=60)
def test_accelerate_launch_a_killed_process_and_resuming(expected, config, tmp_path):
    out = tmp_path / "out"
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())]
    with limited(started(*launch, *TRAIN, str(config), "--out", str(out))) as job:
        workers: list[psutil.Process] = []
        until = time.monotonic() + 500
        while not (out / "checkpoints" / "step-3" / "manifest.json").exists():
            assert job.poll() is None and time.monotonic() < until, job.communicate(timeout=500)[0]
            workers = psutil.Process(job.pid).children(recursive=True)
            time.sleep(0.02)
        victim = next(worker for worker in workers if worker.environ().get("RANK") == "1")
        victim.send_signal(signal.SIGKILL)
        said = job.communicate(timeout=500)[0]
        assert job.returncode != 0 and "SIGKILL" in said, said
    assert psutil.wait_procs(workers, timeout=5)[1] == []
    done = command("train", "--resume", "--out", str(out), "--processes", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(RunDir(out), expected)


def test_more_gpus_than_there_are_are_refused(tmp_path, tiny_model, rows_file):
    config = tmp_path / "run.yaml"
    config.write_text(SETTINGS % (tiny_model, rows_file, 2, 1))
    wanted = torch.cuda.device_count() + 1
    done = CliRunner().invoke(app, ["train", str(config), "--out", str(tmp_path / "run"), "--gpus", str(wanted)])
    assert done.exit_code != 0 and not (tmp_path / "run").exists()
    assert f"--gpus is {wanted}" in f"{done.output}{done.exception}"


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("ACCELERATE_USE_FSDP", "true", "train.fsdp: true"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DDP"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "model.dtype"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "--dynamo_backend no"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "train.gradient_accumulation_steps"),
    ],
)
def test_a_launcher_changes_nothing_unsaid(monkeypatch, tmp_path, make_config, variable, value, remedy):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=f"{variable}={value}.*{remedy}"):
        train(make_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
