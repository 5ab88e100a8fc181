"""`ghosttune infer` and `ghosttune merge`: order, ids, bad rows, kills, and the same logits."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ghosttune.config.loading import load_config
from ghosttune.errors import DataError, GhosttuneError, InputError, ModelError, RunError
from ghosttune.inference.pipeline import Pipeline
from ghosttune.inference.sampling import Sampling
from ghosttune.models import merging
from ghosttune.workflows import infer as infer_module
from ghosttune.workflows.infer import infer
from ghosttune.workflows.merge import merge
from ghosttune.workflows.train import train

ROWS: list[Any] = [
    {"id": "one", "prompt": "Say red number 1"},
    {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Say blue"}]},
    {"id": 3, "prompt": ""},
    {"instruction": "Say green", "input": "number 4"},
    {"messages": [{"role": "user", "content": "Say é 🙂"}, {"role": "assistant", "content": "é"}]},
    {"id": "last", "prompt": "Say pink " + "please " * 600},
]
BAD = {"3", "rows.jsonl:7", "rows.jsonl:8"}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("infer") / "rows.jsonl"
    lines = [json.dumps(row).encode() for row in ROWS]
    path.write_bytes(b"\n".join([*lines, b'{"prompt": "caf\xe9"}', b"[1]", b"", b'{"id": "x", "prompt": "Say white"}']))
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_keep_order_and_ids_and_bad_ones_cost_no_other(source, tmp_path) -> None:
    output = tmp_path / "out.jsonl"
    done = infer("builtin:tiny", source, output, max_new_tokens=6, device="cpu")
    lines = lines_of(output)
    ids = ["one", "rows.jsonl:2", "3", "rows.jsonl:4", "rows.jsonl:5", "last", "rows.jsonl:7", "rows.jsonl:8", "x"]
    assert [line["example_id"] for line in lines] == ids
    assert {line["example_id"] for line in lines if "error" in line} == BAD
    assert len(done.faults) == 3 and done.faults[0] == "3: prompt is empty"
    pipeline = Pipeline.open("builtin:tiny", "cpu")
    alone = pipeline.generate(["Say red number 1"], max_new_tokens=6)[0]
    assert lines[0] == {
        "example_id": "one", "output": alone.text, "tokens": alone.tokens, "stopped": alone.stopped
    }  # fmt: skip
    with pytest.raises(RunError, match="exists and is finished"):
        infer("builtin:tiny", source, output, max_new_tokens=6)


def test_a_killed_command_goes_on_where_it_stopped(source, tmp_path, monkeypatch) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    monkeypatch.setattr(infer_module, "ROWS_TOGETHER", 4)
    infer("builtin:tiny", source, whole, max_new_tokens=6, device="cpu")

    def killed(done: int, rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        infer("builtin:tiny", source, output, max_new_tokens=6, device="cpu", progress=killed)
    with open(output, "ab") as file:
        file.write(b'{"example_id": "rows.js')  # a line that the kill cut short
    with pytest.raises(RunError, match=r"was begun with \{\"max_new_tokens\": 6\}, now it is"):
        infer("builtin:tiny", source, output, max_new_tokens=7, device="cpu")
    done = infer("builtin:tiny", source, output, max_new_tokens=6, device="cpu")
    assert done.already == 4
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "whole.jsonl"]


def test_a_block_that_a_kill_cut_short_is_asked_again_as_a_whole(source, tmp_path, monkeypatch) -> None:
    """Its answers are drawn with one seed and made in one batch."""
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    monkeypatch.setattr(infer_module, "ROWS_TOGETHER", 4)
    asked = partial(infer, "builtin:tiny", source, max_new_tokens=6, sampling=Sampling(temperature=1.0), device="cpu")
    asked(whole)

    def killed(done: int, rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asked(output, progress=killed)
    lines = whole.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:6]) + lines[6][:5])
    assert asked(output).already == 4
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("kind", ["run", "merged"])
def test_weights_that_were_replaced_are_not_gone_on_with(run, source, tmp_path, monkeypatch, kind) -> None:
    model, output = tmp_path / "model", tmp_path / "out.jsonl"
    shutil.copytree(run, model) if kind == "run" else merge(run, model)
    monkeypatch.setattr(infer_module, "ROWS_TOGETHER", 4)

    def killed(done: int, rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        infer(str(model), source, output, max_new_tokens=6, device="cpu", progress=killed)
    weights = next(model.glob("adapter/*.safetensors" if kind == "run" else "*.safetensors"))
    before, tensors = weights.read_bytes(), load_file(weights)
    name = sorted(tensors)[-1]
    save_file(tensors | {name: tensors[name] + 1}, weights, {"format": "pt"})
    with pytest.raises(RunError, match=r"was begun with other weights of .*, which were replaced since"):
        infer(str(model), source, output, max_new_tokens=6, device="cpu")
    weights.write_bytes(before)
    assert infer(str(model), source, output, max_new_tokens=6, device="cpu").already == 4


def test_input_that_is_none(tmp_path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        infer("builtin:tiny", tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match="holds no rows"):
        infer("builtin:tiny", tmp_path / "empty.jsonl", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory) -> Path:
    """Ten steps that move the logits, with a template that its tokenizer would not choose."""
    folder = tmp_path_factory.mktemp("merge")
    rows = [{"prompt": f"Say red number {n}", "completion": f"red {n}"} for n in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "model": {"name": str(tiny_model), "device": "cpu"},
        "data": {"train": {"path": str(folder / "rows.jsonl")}, "template": "turns"},
        "train": {"max_steps": 10, "learning_rate": 0.01, "warmup_steps": 2},
        "measure": {"norms": None, "ledger": None},
        "evaluate": {"limit": 0, "max_new_tokens": 4},
    }
    return train(load_config(settings), folder / "run").path


def test_a_merged_folder_answers_as_its_run_and_loads_without_us(run, tmp_path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = merge(run, tmp_path / "merged")
    assert done["moved"] <= done["tolerance"] == 1e-4
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        ours, base = Pipeline.from_run(run, device="cpu").model, Pipeline.from_run(run, device="cpu").model
        adapter = ours(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids).logits, adapter, rtol=1e-4, atol=1e-5)
        with base.disable_adapter():
            assert not torch.allclose(base(input_ids=ids).logits, adapter, atol=1e-3), "the adapter does something"
    question = "Say golden number 8"
    one, other = Pipeline.open(run, "cpu"), Pipeline.open(tmp_path / "merged", "cpu")
    assert other.encoder.template.kind == "turns", "not the chat template that the tokenizer has"
    assert other.prompt_ids(question) == one.prompt_ids(question)
    assert other.generate([question]) == one.generate([question])
    with pytest.raises(RunError, match="is not empty"):
        merge(run, tmp_path / "merged")


def test_a_merge_that_changes_the_logits_leaves_nothing(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(merging, "TOLERANCES", {"float32": 0.0})
    write = merging.write_merged

    def damaged(model: Any, *rest: Any) -> None:
        model.get_output_embeddings().weight.data[5] += 0.1
        write(model, *rest)

    monkeypatch.setattr("ghosttune.workflows.merge.write_merged", damaged)
    with pytest.raises(GhosttuneError, match="nothing was written"):
        merge(run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT 0.21 asks Transformers 5.23
def test_an_adapter_that_learns_a_prompt_is_refused(tiny_model) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ModelError, match="a prompt_tuning adapter learns a prompt"):
        merging.merged(peft.get_peft_model(base, config))


def test_every_command_opens_what_training_and_merging_wrote(run, tmp_path) -> None:
    merge(run, tmp_path / "merged")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Say red"}\n')
    for place, model in enumerate([run, tmp_path / "merged"]):
        infer(str(model), tmp_path / "rows.jsonl", tmp_path / f"out-{place}.jsonl", device="cpu")
    assert lines_of(tmp_path / "out-0.jsonl") == lines_of(tmp_path / "out-1.jsonl")
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["template"] == "turns"
    with pytest.raises(InputError, match="neither a run"):
        infer(str(tmp_path), tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(InputError, match="none does not exist; give a run directory, a model folder"):
        Pipeline.open(tmp_path / "none")


def test_a_prompt_and_its_answer_must_fit_into_the_model() -> None:
    pipeline = Pipeline.open("builtin:tiny", "cpu")
    long = "word " * 600
    assert len(pipeline.prompt_ids(long, 100)) == 412, "the oldest context goes"
    with pytest.raises(DataError, match=r"the longest answer 600, and the model has 512 positions"):
        pipeline.generate(["Hello"], max_new_tokens=600)
