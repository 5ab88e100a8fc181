"""`ghosttune export` of a run: what lies in the folder, and that it is the run's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from gguf import GGUFReader, dequantize
from safetensors.torch import load_file

from ghosttune.errors import GhosttuneError, InputError, ModelError, RunError
from ghosttune.inference.pipeline import Pipeline
from ghosttune.proving.specimens import short_run, write_rows
from ghosttune.workflows.export import export
from ghosttune.workflows.train import train


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    settings = {"method__type": "lora", "method__r": 4, "method__target_modules": ["q_proj", "down_proj"]}
    return train(short_run(tiny_model, write_rows(folder / "rows.jsonl"), **settings), folder / "my-run").path


def entries(path):
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def test_ollama_gets_the_merged_model_and_the_template(run, tmp_path):
    done = export(run, "ollama", tmp_path / "out", kind="q8_0")
    assert done["files"] == ["Modelfile", "model.gguf"]
    assert done["command"] == f"ollama create my-run -f {tmp_path / 'out/Modelfile'}"
    assert any("do not divide into blocks of 32" in note for note in done["notes"])
    stored = {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(tmp_path / "out/model.gguf").tensors}
    model = Pipeline.from_run(run, device="cpu").model.merge_and_unload()
    expected = model.model.layers[0].mlp.down_proj.weight.detach().float().numpy()
    assert np.abs(stored["blk.0.ffn_down.weight"] - expected).max() <= np.abs(expected).max() / 127
    assert "FROM ./model.gguf\nTEMPLATE" in (tmp_path / "out/Modelfile").read_text()


def test_an_adapter_of_its_own(run, tmp_path):
    done = export(run, "gguf", tmp_path / "out", adapter=True)
    assert done["files"] == ["adapter.gguf"] and done["tensors"] == 8
    found = entries(tmp_path / "out/adapter.gguf")
    assert found["general.type"] == "adapter" and found["general.name"] == "my-run"


def test_vllm_gets_peft_s_files_and_a_command(run, tiny_model, tmp_path):
    done = export(run, "vllm", tmp_path / "out")
    assert done["files"] == ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "chat_template.jinja"]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "out/adapter" / name).read_bytes() == (run / "adapter" / name).read_bytes()
    assert f"vllm serve {tiny_model} --enable-lora --max-lora-rank 8 " in done["command"]
    assert f"--lora-modules my-run={tmp_path / 'out/adapter'}" in done["command"]


def test_mlx_adds_what_peft_adds(run, tmp_path):
    export(run, "mlx", tmp_path / "out")
    tensors = load_file(tmp_path / "out/adapter/adapters.safetensors")
    settings = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    name = "model.layers.1.mlp.down_proj"
    added = settings["lora_parameters"]["scale"] * tensors[f"{name}.lora_a"] @ tensors[f"{name}.lora_b"]
    model = Pipeline.from_run(run, device="cpu").model
    delta = model.get_base_model().model.layers[1].mlp.down_proj.get_delta_weight("default")
    assert torch.allclose(added.T, delta.float(), atol=1e-3)
    assert settings["lora_parameters"]["keys"] == ["mlp.down_proj", "self_attn.q_proj"]
    assert settings["num_layers"] == 2


def test_the_hub_s_folder_and_card(run, tiny_model, tmp_path):
    done = export(run, "hub", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "peft" and "base_model" not in front and "license" not in front
    record = json.loads((run / "run.json").read_text())
    assert f"{record['verdict']['dev_loss']:.4g} nats" in card and "95 % interval over" in card
    assert next(iter(record["data"]["fingerprints"].values())) in card
    assert card.count("not recorded: state it before you publish") == 2
    files = {path.name: path.read_text(errors="replace") for path in (tmp_path / "out").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(files)
    assert not any(str(tiny_model.parent) in text for text in files.values())  # no folder of this machine
    assert "--push OWNER/my-run" in done["command"] and len(done["notes"]) == 3


def test_nothing_is_sent_unless_asked_and_no_token_is_written(run, tmp_path, monkeypatch):
    sent = []

    class Api:
        def create_repo(self, name, private, exist_ok):
            return type("Address", (str,), {"repo_id": name})(f"https://hub/{name}")

        def upload_folder(self, repo_id, folder_path, commit_message):
            sent.append((repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret")
    export(run, "hub", tmp_path / "dry")
    assert not sent
    done = export(run, "hub", tmp_path / "out", push="me/model")
    assert done["pushed"] == "https://hub/me/model" and sent[0][0] == "me/model" and "README.md" in sent[0][1]
    assert not any(b"hf_a_secret" in path.read_bytes() for path in (tmp_path / "out").iterdir())


def test_what_the_hub_refuses_leaves_the_folder(run, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("401 Unauthorized\nmore")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    with pytest.raises(GhosttuneError, match=r"401 Unauthorized.*is complete: log in"):
        export(run, "hub", tmp_path / "out", push="me/model")
    assert (tmp_path / "out/README.md").is_file()


def test_llama_cpp_s_converter_is_given_the_merged_model(run, tmp_path):
    sources = tmp_path / "llama.cpp"
    sources.mkdir()
    script = "import sys, pathlib\np = pathlib.Path(sys.argv[1])\nout = sys.argv[sys.argv.index('--outfile') + 1]\n"
    script += "pathlib.Path(out).write_text(' '.join(sorted(f.name for f in p.iterdir())) + sys.argv[-1])\n"
    (sources / "convert_hf_to_gguf.py").write_text(script)
    done = export(run, "gguf", tmp_path / "out", llama_cpp=sources)
    assert done["files"] == ["model.gguf"]
    assert "model.safetensors" in (tmp_path / "out/model.gguf").read_text()
    (sources / "convert_hf_to_gguf.py").write_text("import sys\nsys.exit('Model Strange is not supported')")
    with pytest.raises(GhosttuneError, match="ended with 1:\n  Model Strange is not supported"):
        export(run, "gguf", tmp_path / "again", llama_cpp=sources)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("to", "options", "said"),
    [
        ("ggfu", {}, "--to ggfu is not known; did you mean gguf"),
        ("gguf", {"kind": "q4_k_m"}, "--kind q4_k_m is not known.*q4_0"),
        ("vllm", {"kind": "q8_0", "adapter": True}, "--kind, --adapter would do nothing with --to vllm"),
        ("gguf", {"push": "me/model"}, "--push would do nothing"),
    ],
)
def test_options_that_a_target_does_not_have(to, options, said, tmp_path):
    with pytest.raises(InputError, match=said):
        export("nowhere", to, tmp_path / "out", **options)


def test_a_folder_in_use_and_a_model_that_no_run_made(run, tiny_model, tmp_path):
    with pytest.raises(RunError, match="is not empty"):
        export(run, "gguf", run)
    with pytest.raises(ModelError, match="has no adapter"):
        export(tiny_model, "gguf", tmp_path / "out", adapter=True)
    with pytest.raises(RunError, match="is no run directory"):
        export(tiny_model, "hub", tmp_path / "out")
    assert export(tiny_model, "gguf", tmp_path / "out")["files"] == ["model.gguf"]


def test_the_message_names_the_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(InputError, match=r"pip install 'ghosttune\[export\]'"):
        export(run, "gguf", tmp_path / "out")
