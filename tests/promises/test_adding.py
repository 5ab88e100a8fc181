"""Every example of docs/adding.md is applied to a copy of the sources, and does there what the page says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "adding.md").read_text(encoding="utf-8")
FILES = re.findall(r"^```python\n# (src/\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
TESTS = re.findall(r"^```python\n# (tests/\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
CHANGES = re.findall(r"^```diff\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

USES = """
import json, sys
from pathlib import Path
import torch
import ghostgrad, ghosttune
assert ghosttune.__file__.startswith(sys.argv[1]), ghosttune.__file__
from ghosttune.data.sources import Source
from ghosttune.metrics.scoring import Corpus, Item
from ghosttune.registry import DATASETS, FIGURES, METRICS
from ghosttune.tasks.losses import PAIR_LOSSES, Said

found = {}
corpus = Corpus([Item("It is.", ("a",)), Item("no end", ("a",)), Item("so. ", ("a",))])
found["metric"] = METRICS["full_stop"].build(corpus).value
folder = Path("tickets")
folder.mkdir()
for name, rows in (("train", 4), ("dev", 2)):
    lines = [f"the {name} parcel {row} is late,delivery" for row in range(rows)]
    (folder / f"{name}.csv").write_text("\\n".join(["text,label", *lines]) + "\\n")
record = DATASETS["tickets"].build(str(folder)).records[0]
found["dataset"] = [turn.content for turn in record.turns]
said = [Said(torch.tensor([-1.0, -5.0]), torch.tensor([3, 3]), torch.tensor([-2.0, -2.0])) for _ in range(2)]
settings = type("Settings", (), {"beta": 0.5})
rejected = Said(torch.tensor([-4.0, -1.0]), torch.tensor([3, 3]), torch.tensor([-2.0, -2.0]))
found["loss"] = PAIR_LOSSES["hinge"].loss(said[0], rejected, settings).tolist()
changes = {
    "method": {"type": "fourierft", "n_frequency": 7, "target_modules": ["q_proj"]},
    "model": {"name": "builtin:tiny", "device": "cpu"},
    "data": {"train": {"path": "builtin:rows", "limit": 24}},
    "train": {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "warmup_steps": 0},
    "measure": {"unsupported": "exact"},
    "evaluate": {"limit": 2, "max_new_tokens": 4, "samples": 1},
    "run": {"trackers": ["housebook"]},
}
from ghostgrad.testing import check_rule
for outer in ((4,), (4, 5), (4, 2, 3)):
    check_rule(torch.nn.PReLU(), torch.randn(*outer, 8))
try:
    check_rule(torch.nn.PReLU(4), torch.randn(2, 4, 5))
except ghostgrad.UnsupportedLayer as error:
    found["layer"] = str(error)
from ghosttune.config.loading import load_config
run = ghosttune.train(load_config(changes), "run")
found["parameters"] = run.record["model"]["trainable_parameters"]
ghosttune.report("run")
found["figure"] = (Path("run") / "report" / "gradient_norm.csv").read_text()
found["preference"] = load_config({"task": {"type": "preference", "loss": "hinge"}, "data": changes["data"]}).task.loss
found["tracker"] = [json.loads(line) for line in Path("housebook.jsonl").read_text().splitlines()]
print(json.dumps(found))
"""

HOUSEBOOK = """
import json


class Book:
    def __init__(self, run):
        self.file = open("housebook.jsonl", "w")

    def write(self, step, what):
        print(json.dumps([step, what]), file=self.file)

    def close(self):
        self.file.close()
"""


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adding")
    shutil.copytree(REPOSITORY / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES:
        assert not (folder / name).exists(), f"{name} is there already"
        (folder / name).write_text(text, encoding="utf-8")
    for change in CHANGES:
        command = ["git", "apply", "--unidiff-zero", "-"]
        subprocess.run(command, input=change, text=True, cwd=folder, check=True, timeout=60)
    return folder


def test_every_kind_has_an_example():
    assert {Path(name).parent.name for name, _ in FILES} == {"metrics", "methods", "known", "reports", "layers"}
    changed = [re.findall(r"^\+\+\+ b/src/(\S+)$", change, re.MULTILINE) for change in CHANGES]
    assert [files[0] for files in changed] == [
        "ghosttune/tasks/losses.py",
        "ghostgrad/layers/__init__.py",
        "ghosttune/training/tracking.py",
    ]


def test_examples_work_where_they_are_applied(copied, tmp_path):
    (tmp_path / "housebook.py").write_text(HOUSEBOOK, encoding="utf-8")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(copied / 'src')!r})\n{USES}", str(copied)]
    done = subprocess.run(command, text=True, capture_output=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["metric"] == pytest.approx(2 / 3)
    assert found["dataset"] == ["Which department?\nthe train parcel 0 is late\n", "delivery"]
    assert found["loss"] == pytest.approx([max(0, 1 - 0.5 * (1 + 2)), 1 - 0.5 * (-3 - 1)])
    assert found["parameters"] == {"attention": 7 * 4}, "seven frequencies in each of four layers"
    assert found["layer"].endswith("a slope for each channel has no rule")
    told = [name for _, what in found["tracker"] for name in what]
    assert {"loss", "eval_loss", "samples", "values", "report"} <= set(told)
    assert [step for step, what in found["tracker"] if "learning_rate" in what] == [1, 2]
    assert found["tracker"][-1] == [None, {"report": "run/report/index.html"}]
    steps = [line.split(",")[0] for line in found["figure"].splitlines()]
    assert steps == ["step", "1", "2"] and found["preference"] == "hinge"


def test_the_test_of_an_example_passes_with_it_and_fails_without(copied, tmp_path):
    ((name, text),) = TESTS
    (tmp_path / Path(name).name).write_text(text, encoding="utf-8")
    passed = {}
    for source in (copied, REPOSITORY):
        command = [sys.executable, "-c", f"import sys, pytest; sys.path.insert(0, {str(source / 'src')!r})\n{PYTEST}"]
        passed[source] = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120).returncode
    assert passed == {copied: 0, REPOSITORY: 1}


PYTEST = "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '--rootdir', '.', '.']))"
