"""What every test shares: one thread, the folder of real data where it is, and small models made in code."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

import processes

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # bitsandbytes compiles while it is imported: 1.5 s of each process

REPOSITORY = Path(__file__).parent.parent
USUAL_SECONDS = 2
modules_known = 0


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose slow tests take longest come first, so that no worker of xdist ends long after the others."""
    seconds: dict[Path, float] = defaultdict(float)
    for item in items:
        if slow := item.get_closest_marker("slow"):
            seconds[item.path] += slow.kwargs.get("seconds", USUAL_SECONDS)
    items.sort(key=lambda item: -seconds[item.path])


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """What has been imported stays: the garbage collector, which every training calls, need not walk it again."""
    global modules_known
    if len(sys.modules) > modules_known:
        modules_known = len(sys.modules)
        gc.collect()
        gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What a test says with `record_property("said", …)` stands below the results."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "said":
                terminalreporter.section(report.nodeid)
                terminalreporter.write_line(text)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Neighbours on the machine make two threads slower than one."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def two_processes() -> None:
    """For tests that need a group of processes: skipped, saying why, where not even the barest one can be had."""
    if reason := processes.why_no_group():
        pytest.skip(f"two processes that only add up a tensor with gloo fail on this machine: {reason}")


@pytest.fixture
def slowness() -> float:
    """How many times as long as on an idle core Python and fresh memory take here and now, 1 at least: limits of
    seconds that tell what is quick from what never ends are multiplied by it."""
    start = time.process_time()
    sum(number * number for number in range(1_000_000))
    bytearray(40_000_000)
    return max(1.0, (time.process_time() - start) / 0.1)


@pytest.fixture(scope="session")
def torch_seconds() -> float:
    """Processor seconds of `import torch` here and now, the least of three: what quick commands are measured by."""
    program = "import time; start = time.process_time(); import torch; print(time.process_time() - start)"
    command = [sys.executable, "-c", program]
    return min(float(subprocess.run(command, capture_output=True, text=True, timeout=500).stdout) for _ in range(3))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real rows and weights beside the repository; tests that need it say so when it is not there."""
    folder = Path(os.environ.get("GHOSTTUNE_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("the folder of real data (../shared, or GHOSTTUNE_SHARED) is not here")
    return folder
