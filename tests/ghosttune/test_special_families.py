"""Families that are built unlike a Llama: hybrids, routers that are called linear, states that run through padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import transformers
from transformers.cache_utils import DynamicLayer

from ghosttune.config.facts import CAUSAL_LM
from ghosttune.config.schema import section_class
from ghosttune.config.sections.model import ModelSettings
from ghosttune.errors import ConfigError, ModelError
from ghosttune.inference.generating import generate
from ghosttune.models.loading import add_adapter, load_model
from ghosttune.models.modules import module_facts, targets_in
from ghosttune.proving import own, rowwise
from ghosttune.workflows.check import check
from ghosttune.workflows.train import train

pytestmark = pytest.mark.filterwarnings("ignore")


def small(config: transformers.PreTrainedConfig, folder: Path, task: str = "causal_lm") -> own.OwnModel:
    loader = transformers.AutoModelForCausalLM if task == "causal_lm" else transformers.AutoModelForSeq2SeqLM
    return own.OwnModel(folder, task, "lora", own.write_small_model(config, task, loader, folder))


def loaded(config: transformers.PreTrainedConfig, folder: Path):
    return load_model(ModelSettings(name=str(small(config, folder).folder)), 0, CAUSAL_LM)


def test_layers_of_two_kinds_are_layers_of_one_list(tmp_path):
    facts = module_facts(loaded(transformers.JambaConfig(), tmp_path))
    groups = {(fact.layer, fact.name.rpartition(".")[2]): fact.group for fact in facts if fact.layer is not None}
    assert groups[0, "x_proj"] == "mlp" and groups[1, "q_proj"] == "attention"


def test_the_output_layer_that_is_called_decoder_is_not_the_part_that_writes(tmp_path):
    facts = module_facts(loaded(transformers.ModernBertDecoderConfig(), tmp_path))
    assert {fact.layer for fact in facts} == {None, 0, 1}


def test_a_router_is_no_linear_layer_though_it_is_called_one(tmp_path):
    model = loaded(transformers.PhimoeConfig(num_local_experts=4), tmp_path)
    routers = [name for name, module in model.named_modules() if type(module).__name__ == "PhimoeTopKRouter"]
    assert routers and not set(routers) & set(targets_in(model, "all_linear").linear)
    assert any(name.endswith("q_proj") for name in targets_in(model, "all_linear").linear)


def test_rows_of_unequal_length_are_answered_alike_where_a_state_runs_through_padding(tmp_path):
    model = loaded(transformers.RwkvConfig(), tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    prompts = [[5, 6, 7, 8, 9], [10, 11], [12, 13]]
    together = generate(model, tokenizer, prompts, [2], 6)
    assert together == [generate(model, tokenizer, [prompt], [2], 6)[0] for prompt in prompts]


def test_what_an_adapter_cannot_act_on_is_refused_with_what_it_can(tmp_path):
    model, lora = loaded(transformers.Mamba2Config(), tmp_path), cast(Any, section_class("method", "lora"))
    with pytest.raises(ConfigError, match=r"method.target_modules: means out_proj as well, .* others: \[in_proj\]"):
        add_adapter(model, lora(r=2), 0)
    assert add_adapter(model, lora(r=2, target_modules=["in_proj"]), 0)


def test_a_model_that_cannot_rewrite_is_refused_by_name(tmp_path):
    (tmp_path / "model").mkdir()
    model = small(transformers.LlamaConfig(), tmp_path / "model")
    kind = rowwise.task_of("seq2seq_lm").kind(None)
    assert kind.loader == "AutoModelForSeq2SeqLM"
    with pytest.raises(ModelError, match="Transformers has no Llama model for Seq2SeqLM"):
        load_model(ModelSettings(name=str(model.folder)), 0, kind)
    audio = small(transformers.Qwen2AudioConfig(), tmp_path / "audio", "seq2seq_lm")
    with pytest.raises(ModelError, match=r"\(qwen2_audio\) has no encoder and decoder for texts"):
        load_model(ModelSettings(name=str(audio.folder)), 0, kind)


def test_code_of_a_model_that_fails_is_told_by_name_and_place_at_check(tmp_path):
    model = small(transformers.GitConfig(), tmp_path / "model")
    (error,) = check(own.run_of(model, tmp_path / "rows")).errors
    assert "the code of " in error and "modeling_git.py, line" in error and "take another model" in error


@pytest.mark.parametrize("task", ["causal_lm", "seq2seq_lm"])
def test_a_model_that_trains_and_cannot_write_is_refused_before_anything_is_written(task, tmp_path, monkeypatch):
    """Its code fails at the second token, where it needs what it kept of the first."""
    (tmp_path / "model").mkdir()
    shape = transformers.LlamaConfig() if task == "causal_lm" else transformers.T5Config()
    model, update = small(shape, tmp_path / "model", task), DynamicLayer.update

    def once(self, *args, **options):
        if self.is_initialized:
            raise IndexError("list index out of range")
        return update(self, *args, **options)

    monkeypatch.setattr(DynamicLayer, "update", once)
    config = own.run_of(model, tmp_path / "rows", evaluate__limit=2, evaluate__max_new_tokens=4)
    (error,) = check(config).errors
    assert "cannot answer, though it can be trained" in error and "IndexError" in error
    assert "set evaluate.limit: 0 and no evaluate.samples for a run without answers" in error
    with pytest.raises(ModelError, match="cannot answer, though it can be trained"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    assert not check(own.run_of(model, tmp_path / "rows", evaluate__limit=0)).errors
