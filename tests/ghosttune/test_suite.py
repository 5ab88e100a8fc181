"""Tasks of lm-evaluation-harness: its own numbers, from its own command line on the merged folder, to the digit."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ghosttune import load_config, own_code, train
from ghosttune.errors import InputError
from ghosttune.judging.suite import evaluate_suite
from ghosttune.workflows.merge import merge

pytestmark = pytest.mark.filterwarnings("ignore")

WORDS = ["red", "green", "blue", "hill", "river", "stone"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """One multiple choice and one task to write, of twelve documents each, in files beside them."""
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("tasks")
    choices = [
        {"question": f"Once there was a {WORDS[n % 6]}. It was", "choices": WORDS[:4], "answer": n % 4}
        for n in range(12)
    ]
    written = [{"question": f"Say {WORDS[n % 6]}. I say", "target": WORDS[n % 6]} for n in range(12)]
    for name, rows in (("choosing", choices), ("saying", written)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = "dataset_path: json\ndataset_kwargs: {{data_files: {{test: {path}}}}}\ntest_split: test\ntask: {name}\n"
    (folder / "choosing.yaml").write_text(
        common.format(path=folder / "choosing.jsonl", name="choosing")
        + "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        + "doc_to_target: '{{answer}}'\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )
    (folder / "saying.yaml").write_text(
        common.format(path=folder / "saying.jsonl", name="saying")
        + "output_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{target}}'\n"
        + 'generation_kwargs: {until: ["\\n", "."], max_gen_toks: 5, do_sample: false}\n'
        + "metric_list: [{metric: exact_match}, {metric: bleu}]\n"
    )
    return folder


def own_numbers(model: Path, tasks: Path, out: Path) -> dict[str, dict[str, float]]:
    """What the harness's own command says of a model folder."""
    arguments = ["--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--tasks", "choosing,saying"]
    arguments += ["--include_path", str(tasks), "--device", "cpu", "--batch_size", "1", "--output_path", str(out)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(out / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lm_eval", "run", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = out.rglob("results_*.json")
    return json.loads(path.read_text())["results"]


def trained(name: str, folder: Path):
    rows = [{"prompt": f"Say {WORDS[n % 6]}. I say", "completion": f"{WORDS[n % 6]} {n}"} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model": {"name": name, "device": "cpu"},
        "data": {"train": {"path": str(folder / "rows.jsonl")}, "template": "plain"},
        "train": {"max_steps": 20, "warmup_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 0.01},
        "measure": {"norms": {"every": None, "effective": None}, "ledger": None},
        "evaluate": {"limit": 0},
    }
    if name != "builtin:tiny":  # it never learned its stop token
        settings["method"] = {"type": "lora", "trainable_token_indices": [2]}
    return train(load_config(settings), folder / "run")


@pytest.mark.slow(seconds=60)
@pytest.mark.parametrize("name", ["builtin:tiny", "stories260K"])
def test_the_numbers_are_the_harness_s_own(name, tasks, request, tmp_path, monkeypatch):
    place = name if name == "builtin:tiny" else str(request.getfixturevalue("shared") / "models" / name)
    run = trained(place, tmp_path)
    merge(run.path, tmp_path / "merged")
    expected = {"adapter": own_numbers(tmp_path / "merged", tasks, tmp_path / "own")}
    if name != "builtin:tiny":
        expected["base"] = own_numbers(Path(place), tasks, tmp_path / "base")
    called: list[object] = []
    monkeypatch.setattr(own_code, "_allowed", True)
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: called.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: called.append(address))
    (found,) = evaluate_suite(run.path, ["choosing", "saying"], tasks_dir=tasks, device="cpu").values()
    assert called == [], "nothing is asked of anybody"
    for who, results in expected.items():
        for task, metrics in results.items():
            for key in [key for key in metrics if key.endswith(",none") and "_stderr" not in key]:
                metric = key.removesuffix(",none")
                assert found[who][f"{task}/{metric}"]["value"] == metrics[key], (who, task, metric)
                assert found["standard_errors"][who][f"{task}/{metric}"] == metrics[f"{metric}_stderr,none"]
    assert {"choosing/acc", "choosing/acc_norm", "saying/exact_match", "saying/bleu"} == set(found["adapter"])
    assert found["adapter"]["saying/bleu"]["low"] is None, "it is no mean over documents"
    assert found["adapter"]["choosing/acc"]["n"] == 12
    lines = run.folder.read_predictions("suite-choosing+saying")
    accs = [(line["scores"]["acc"], line["base_scores"]["acc"]) for line in lines if "acc" in line["scores"]]
    ours, base = np.array(accs, float).T
    change = found["comparison"]["base"]["choosing/acc"]["change"]
    assert change["value"] == pytest.approx((ours - base).mean()) and change["n"] == 12
    assert change["low"] <= change["value"] <= change["high"]
    assert run.evaluation["suite-choosing+saying"] == found


def test_what_cannot_be_asked_is_said(tasks, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="give --allow-code"):
        evaluate_suite("builtin:tiny", ["choosing"], tasks_dir=tasks)
    with pytest.raises(InputError, match="is no folder"):
        evaluate_suite("builtin:tiny", ["choosing"], tasks_dir=tmp_path / "nowhere")
    monkeypatch.setattr(own_code, "_allowed", True)
    with pytest.raises(InputError, match="no task chosing; it has choosing, saying"):
        evaluate_suite("builtin:tiny", ["chosing"], tasks_dir=tasks)
    monkeypatch.setattr("ghosttune.judging.suite.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ghosttune\[suite\]'"):
        evaluate_suite("builtin:tiny", ["choosing"])
