"""`model.attention` is what attention is computed with, to the same numbers, or is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from small_llama import small_llama

from ghosttune import open_run, train
from ghosttune.config.sections.model import ModelSettings
from ghosttune.errors import ConfigError
from ghosttune.models.loading import load_model
from ghosttune.run.tables import read_table
from ghosttune.workflows.check import check

pytestmark = pytest.mark.filterwarnings("ignore")

MEASURED: dict[str, Any] = {
    "train__warmup_steps": 0,
    "measure__norms__every": 1,
    "measure__ledger__guide_every": 2,
    "data__guide__rows": 4,
    "evaluate__limit": 0,
}


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_the_model_has_the_attention_that_was_asked_for(tiny_model, name):
    model = load_model(ModelSettings(name=str(tiny_model), attention=name), 0)
    assert model.config._attn_implementation == name
    random = load_model(ModelSettings(name=str(tiny_model), attention=name, init="random"), 0)
    assert random.config._attn_implementation == name


def _softmax_in_its_own_precision(monkeypatch) -> None:
    """Llama's eager attention rounds to 32 bits inside; AdamW's first steps make 0.3 % of a value out of that."""
    softmax = torch.nn.functional.softmax

    def precise(given, dim=None, dtype=None, **others):
        return softmax(given, dim=dim, **others)

    monkeypatch.setattr(torch.nn.functional, "softmax", precise)


@pytest.mark.slow
def test_rows_are_measured_alike_with_each(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr("ghosttune.stages.model.load_model", lambda *given: load_model(*given).double())
    _softmax_in_its_own_precision(monkeypatch)
    runs = [train(make_config(**MEASURED, model__attention=name), tmp_path / name) for name in ("sdpa", "eager")]
    for table, columns in (("norms", ["norm"]), ("ledger", ["value", "credit"])):
        found = [read_table(run.folder, table).to_pydict() for run in runs]
        for column in columns:
            one, two = (np.array(each[column], float) for each in found)
            np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-9 * np.nanmax(np.abs(one)), err_msg=column)
    with monkeypatch.context() as patch:
        patch.undo()
        assert open_run(tmp_path / "eager").record["status"] == "finished"


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention"])
def test_attention_for_gpus_is_refused_on_the_cpu_before_anything_is_loaded(make_config, tmp_path, monkeypatch, name):
    config = make_config(model__attention=name)
    said = f"model.attention: {name} needs a GPU, and the model is on the CPU: use sdpa or eager there"
    report = check(config)
    assert [error.partition(" [")[0] for error in report.errors] == [said] and report.refused == {"model.attention"}
    with pytest.raises(ConfigError, match=f"model.attention: {name} needs a GPU"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_attention_that_the_family_has_not_is_refused(tmp_path):
    shape = transformers.BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2)
    transformers.BloomForCausalLM(shape).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.attention: sdpa cannot be had for"):
        load_model(ModelSettings(name=str(tmp_path), attention="sdpa"), 0)
    assert load_model(ModelSettings(name=str(tmp_path), attention="eager"), 0).config._attn_implementation == "eager"


def test_another_attention_than_the_one_asked_for_is_refused(tiny_model, monkeypatch):
    """As Transformers does on its own: FlashAttention that is not installed, or not of this family."""
    monkeypatch.setattr(transformers.PreTrainedModel, "_check_and_adjust_attn_implementation", lambda *_, **__: "eager")
    with pytest.raises(ConfigError, match="for which Transformers takes eager; set that"):
        load_model(ModelSettings(name=str(tiny_model), attention="sdpa"), 0)


def test_other_faults_of_a_model_are_told_as_before(tmp_path):
    from ghosttune.errors import ModelError

    torch.manual_seed(0)
    small_llama(40).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(ModelSettings(name=str(tmp_path), attention="sdpa"), 0)
