"""`--engine vllm`: what is handed to vLLM, what is read back, and what is refused before anything is loaded.

vLLM wants an environment of its own, where scripts/vllm_check.py runs it. Here its place is taken by Transformers' own
`generate` on PEFT's own model, opened from the very files that vLLM would open.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from ghosttune.errors import InputError, ModelError, RunError
from ghosttune.inference.pipeline import Pipeline
from ghosttune.inference.sampling import Sampling
from ghosttune.judging.engines import open_pipeline
from ghosttune.judging.evaluate import evaluate
from ghosttune.models.upstream import without_upstream_warnings
from ghosttune.workflows.infer import infer
from ghosttune.workflows.train import train

PROMPTS = ["Say red number 1", "Say blue " + "please " * 30, "Say red number 1", "é 🙂"]


@dataclass
class Request:
    lora_name: str
    lora_int_id: int
    lora_path: str


class StandIn:
    """vLLM's LLM as far as it is used: one prompt at a time, by Transformers and PEFT alone."""

    opened: ClassVar[list[dict[str, Any]]] = []
    asked: ClassVar[list[Any]] = []

    def __init__(self, **how: Any):
        self.opened.append(how)
        self.how = how

    def generate(self, prompts: list[Any], sampling: list[Any], use_tqdm: bool, lora_request: Request | None) -> Any:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        self.asked += sampling
        model: Any = AutoModelForCausalLM.from_pretrained(self.how["model"], dtype=getattr(torch, self.how["dtype"]))
        if lora_request is not None:
            assert self.how["enable_lora"] and self.how["max_lora_rank"] >= 8
            with without_upstream_warnings():
                model = PeftModel.from_pretrained(model, lora_request.lora_path)
        found = []
        for prompt, how in zip(prompts, sampling, strict=True):
            ids = torch.tensor([prompt["prompt_token_ids"]])
            assert ids.shape[1] + how.max_tokens <= self.how["max_model_len"]
            new = model.eval().generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=how.max_tokens,
                eos_token_id=how.stop_token_ids, pad_token_id=0,
            )[0, ids.shape[1] :]  # fmt: skip
            found.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(new.tolist()))]))
        return found


@pytest.fixture
def vllm(monkeypatch):
    """The stand-in where Python looks for vLLM."""
    whole, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    whole.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    whole.__dict__.update(LLM=StandIn, SamplingParams=SimpleNamespace, TokensPrompt=dict)
    request.__dict__["LoRARequest"] = Request
    for name, module in {"vllm": whole, "vllm.lora": lora, "vllm.lora.request": request}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(StandIn, "opened", [])
    monkeypatch.setattr(StandIn, "asked", [])
    return StandIn


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model) -> Path:
    from ghosttune.proving.specimens import short_run, write_rows

    folder = tmp_path_factory.mktemp("engines")
    config = short_run(tiny_model, write_rows(folder / "rows.jsonl"), train__max_steps=4, train__learning_rate=0.02)
    return train(config, folder / "run").path


def test_answers_are_those_of_our_own_loop(vllm, run, tiny_model):
    ours, theirs = Pipeline.open(run, "cpu"), open_pipeline(run, "vllm")
    for adapter in (True, False):
        how: Any = {"max_new_tokens": 9, "adapter": adapter}
        assert theirs.generate(PROMPTS, **how) == ours.generate(PROMPTS, **how)
    assert ours.generate(PROMPTS) != ours.generate(PROMPTS, adapter=False)  # else the adapter would not be seen
    assert len(vllm.opened) == 1 and vllm.opened[0]["model"] == str(tiny_model) and vllm.opened[0]["dtype"] == "float32"
    assert all(one.ignore_eos and one.temperature == 0 and one.seed is None for one in vllm.asked)


def test_a_base_that_is_on_no_disk_is_written_for_it(vllm):
    ours, theirs = Pipeline.open("builtin:tiny", "cpu"), open_pipeline("builtin:tiny", "vllm")
    assert theirs.generate(PROMPTS[:2], max_new_tokens=7) == ours.generate(PROMPTS[:2], max_new_tokens=7)
    assert theirs.digest == ours.digest and vllm.opened[0]["model"] != "builtin:tiny"


def test_draws_have_a_seed_each(vllm, run):
    open_pipeline(run, "vllm").generate(PROMPTS, max_new_tokens=2, sampling=Sampling(0.7, 0.9, 5, 11))
    assert [(one.seed, one.temperature, one.top_p, one.top_k) for one in vllm.asked] == [
        (11 + at, 0.7, 0.9, 5) for at in range(4)
    ]


def test_infer_and_evaluate_say_who_wrote(vllm, run, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    for engine in ("transformers", "vllm"):
        infer(str(run), rows, tmp_path / f"{engine}.jsonl", max_new_tokens=6, engine=engine)
    assert (tmp_path / "vllm.jsonl").read_bytes() == (tmp_path / "transformers.jsonl").read_bytes()
    found = {name: evaluate(run, engine=name, out=tmp_path / name)["dev"] for name in ("transformers", "vllm")}
    assert [found[name].pop("generation")["engine"] for name in found] == ["transformers", "vllm"]
    assert found["transformers"] == found["vllm"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"engine": "vlm"}, "--engine vlm is not known; did you mean vllm"),
        ({"engine": "vllm", "device": "cuda:1"}, "--device cuda:1 says nothing to vLLM"),
    ],
)
def test_what_it_would_not_do_is_refused(vllm, run, how, words):
    with pytest.raises(InputError, match=words):
        open_pipeline(run, **how)


def test_without_vllm_it_says_what_to_install_and_leaves_nothing_behind(run, tmp_path, monkeypatch):
    monkeypatch.setattr("ghosttune.judging.engines.find_spec", lambda name: None)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Say red"}\n')
    with pytest.raises(InputError, match=r"--engine vllm needs vLLM, which is not installed: pip install vllm"):
        infer(str(run), rows, tmp_path / "out.jsonl", engine="vllm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]
    assert infer(str(run), rows, tmp_path / "out.jsonl", max_new_tokens=2).rows == 1


def test_likelihoods_and_other_baselines_are_refused_by_name(vllm, run, tmp_path):
    with pytest.raises(InputError, match=r"perplexity asks how likely given text is, and --engine vllm only answers"):
        evaluate(run, engine="vllm", overrides=["evaluate.metrics=[exact_match,perplexity]"], out=tmp_path / "out")
    with pytest.raises(InputError, match=r"--baseline builtin:tiny: vllm holds one model and its base"):
        evaluate(run, engine="vllm", baseline="builtin:tiny", out=tmp_path / "out")
    assert not vllm.opened


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"method": {"type": "lora", "use_dora": True}}, ModelError, "method DoRA is no pair"),
        ({"method": {"type": "full"}}, ModelError, "is a whole model, and no adapter on a base; merge the run"),
    ],
)
def test_adapters_that_vllm_does_not_load_are_refused(vllm, make_config, tmp_path, changes, error, words):
    run = train(make_config(train__max_steps=3, **changes), tmp_path / "run").path
    with pytest.raises(error, match=words):
        open_pipeline(run, "vllm")
    with pytest.raises(RunError, match="is neither a run"):
        open_pipeline(tmp_path, "vllm")
