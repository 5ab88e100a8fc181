"""Code that comes with a model runs only when whoever opens it says so, whatever the run's own files say."""

from __future__ import annotations

import inspect
import json
import shutil

import pytest
import yaml
from click.testing import CliRunner
from typer.main import get_command

import ghosttune
from ghosttune.choosing.attribute import attribute
from ghosttune.choosing.clustering import cluster
from ghosttune.choosing.index import index
from ghosttune.choosing.neighbours import dedupe, similar
from ghosttune.choosing.opened import OpenedRun
from ghosttune.choosing.select import select
from ghosttune.cli.main import app
from ghosttune.errors import ConfigError, InputError, ModelError
from ghosttune.inference.pipeline import Pipeline
from ghosttune.judging.evaluate import evaluate
from ghosttune.workflows.export import export
from ghosttune.workflows.infer import infer
from ghosttune.workflows.merge import merge
from ghosttune.workflows.report import texts_of
from ghosttune.workflows.sweep import SweepDir, _start
from ghosttune.workflows.train import resume

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({marker!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""

READING = {"compare", "show"}
"""Commands that read what runs wrote and load nothing."""

COMMANDS = {
    "chat": ["{run}", "--prompt", "hello"],
    "serve": ["{run}", "--port", "0"],
    "evaluate": ["{run}"],
    "infer": ["{run}", "--input", "{rows}", "--output", "{out}"],
    "merge": ["{run}", "--out", "{out}"],
    "export": ["{run}", "--to", "hub", "--out", "{out}"],
    "index": ["{run}"],
    "attribute": ["{run}", "--prompt", "a", "--completion", "b"],
    "similar": ["{run}", "1"],
    "dedupe": ["{run}"],
    "cluster": ["{run}", "--clusters", "2"],
    "select": ["{run}", "--out", "{out}", "--keep", "2"],
    "check": ["--resume", "--out", "{run}"],
    "preview": ["{run}/config.yaml"],
    "train": ["{run}/config.yaml", "--out", "{out}"],
}

FUNCTIONS = {
    "Pipeline.open": Pipeline.open,
    "Pipeline.from_run": Pipeline.from_run,
    "OpenedRun": OpenedRun,
    "evaluate": evaluate,
    "index": index,
    "merge": lambda run: merge(run, run.parent / "out"),
    "export": lambda run: export(run, "gguf", run.parent / "out"),
    "infer": lambda run: infer(str(run), run.parent / "rows.jsonl", run.parent / "answers.jsonl"),
    "attribute": lambda run: attribute(run, prompt="a", completion="b"),
    "similar": lambda run: similar(run, "1"),
    "dedupe": dedupe,
    "cluster": lambda run: cluster(run, 2),
    "select": lambda run: select(run, run.parent / "out.jsonl", keep=2),
    "open_run(…).pipeline": lambda run: ghosttune.open_run(run).pipeline(),
    "load_config": lambda run: ghosttune.load_config(run / "config.yaml"),
}


@pytest.fixture
def marker(tmp_path):
    """Exists once the code has run."""
    return tmp_path / "ran"


@pytest.fixture
def own_model(tiny_model, tmp_path, marker, monkeypatch):
    """A model folder with code of its own."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own_model"
    shutil.copytree(tiny_model, folder)
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    places = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": places}))
    return folder


@pytest.fixture
def hostile(copied, own_model):
    """A run whose config.yaml asks for that code."""
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["model"] |= {"name": str(own_model), "trust_remote_code": True}
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    (copied.parent / "rows.jsonl").write_text('{"prompt": "hello"}\n')
    return copied


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_runs_the_code_of_a_run_unasked(hostile, marker, name):
    places = {"run": hostile, "rows": hostile.parent / "rows.jsonl", "out": hostile.parent / "out"}
    done = CliRunner().invoke(get_command(app), [name, *(text.format(**places) for text in COMMANDS[name])])
    said = done.output + str(done.exception)
    assert "give --trust-remote-code" in said
    assert getattr(done.exception, "exit_code", done.exit_code) == 2
    assert not marker.exists()


def test_resuming_does_not_run_it_either(hostile, marker):
    record = json.loads((hostile / "run.json").read_text())
    (hostile / "run.json").write_text(json.dumps(record | {"status": "stopped"}))
    with pytest.raises(ConfigError, match="in a file of a run"):
        resume(hostile)
    assert not marker.exists()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_function_runs_it_unasked(hostile, marker, name):
    with pytest.raises((ConfigError, ModelError), match="--trust-remote-code"):
        FUNCTIONS[name](hostile)
    assert not marker.exists()


def test_a_run_that_was_only_opened_asks_for_no_code(hostile, marker):
    """Its configuration can be given to `train`; a report shows no texts and says why."""
    run = ghosttune.open_run(hostile)
    assert not run.config.model.trust_remote_code
    with pytest.raises(ModelError, match="give --trust-remote-code"):
        ghosttune.train(run.config, hostile.parent / "again")
    wanted = texts_of(run.folder)
    assert wanted == ({}, "") or "--trust-remote-code" in wanted[1]
    assert not marker.exists()


def test_a_model_is_opened_without_its_code(own_model, marker):
    with pytest.raises(ModelError, match="Read that code first"):
        Pipeline.open(own_model)
    assert not marker.exists()


@pytest.mark.parametrize("which", ["hostile", "own_model"])
def test_with_consent_it_runs(request, which, marker):
    pipeline = Pipeline.open(request.getfixturevalue(which), trust_remote_code=True)
    assert marker.exists()
    assert pipeline.generate(["hello"], max_new_tokens=2)


def test_consent_permits_and_does_not_ask(copied):
    """A run that was trained without code of its own stays without it."""
    assert not ghosttune.open_run(copied, trust_remote_code=True).config.model.trust_remote_code


def test_the_author_of_a_configuration_consents_in_it(own_model, hostile, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"model": {"name": str(own_model), "trust_remote_code": True}}))
    assert ghosttune.load_config(path, overrides=["data.train.path=builtin:rows"]).model.trust_remote_code
    given = ghosttune.load_config(hostile / "config.yaml", overrides=["model.trust_remote_code=true"])
    assert given.model.trust_remote_code


def test_a_sweep_consents_to_the_models_that_it_names_only(hostile, tmp_path, monkeypatch):
    from ghosttune.config.sweeps import Trial

    folder = SweepDir(tmp_path)
    trial = Trial("arm", 1, ghosttune.load_config(hostile / "config.yaml", trust_remote_code=True))
    shutil.copytree(hostile, folder.run(trial).path)
    started = []
    monkeypatch.setattr("ghosttune.workflows.sweep.subprocess.Popen", lambda command, **_: started.append(command))
    _start(folder, trial, 1)
    assert started[0][-3:] == ["--trust-remote-code", "--out", str(folder.run(trial).path)]
    config = folder.run(trial).config
    config.write_text(config.read_text().replace("own_model", "another_model"))
    with pytest.raises(InputError, match="another_model"):
        _start(folder, trial, 1)


def test_every_command_and_function_that_opens_a_run_can_be_given_consent():
    commands = get_command(app).commands
    opening = {
        name
        for name, one in commands.items()
        if {"run", "runs", "run_or_model", "resume"} & {parameter.name for parameter in one.params}
    }
    assert opening - READING <= {
        name for name, one in commands.items() if "trust_remote_code" in {parameter.name for parameter in one.params}
    }
    functions = [evaluate, index, infer, merge, attribute, similar, dedupe, cluster, select, resume]
    for function in [*functions, ghosttune.open_run, ghosttune.report, Pipeline.open, OpenedRun]:
        assert inspect.signature(function).parameters["trust_remote_code"].default is False, function
