"""What mlx-lm computes from the adapters written here, against PEFT: runs where mlx-lm is installed (Linux too)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exported_families import CONFIGS, small_model, tokenizer
from peft import LoraConfig, get_peft_model

from ghosttune.exporting.folders import TYPES, write_mlx_adapter
from ghosttune.models.rotations import repeat_rotations
from ghosttune.models.upstream import without_upstream_warnings

pytestmark = pytest.mark.slow(seconds=20)

mlx_lm = pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: pip install mlx-lm mlx-cpu")

FAMILIES = [name for name in CONFIGS if name not in ("gpt2", "llama3")]


def test_every_type_that_leaves_as_an_adapter_is_tried():
    assert {CONFIGS[name]().model_type for name in FAMILIES} == set(TYPES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_logits_with_the_adapter(family, tmp_path):
    import mlx.core as mx

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    adapter.mkdir()
    small_model(family).save_pretrained(base)
    tokenizer().save_pretrained(base)
    repeat_rotations(base / "config.json")
    modules = ["o_proj", "down_proj"] if family == "phi3" else ["q_proj", "up_proj"]
    with without_upstream_warnings():
        settings = LoraConfig(r=4, lora_alpha=6, target_modules=modules, layers_to_transform=[1])
        model = get_peft_model(small_model(family), settings).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    write_mlx_adapter(model, adapter)
    length = 12 if family == "gemma2" else 24  # mlx-lm gives Gemma 2 no window
    ids = torch.randint(6, 1536, (1, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0].numpy()
    mx.set_default_device(mx.cpu)
    found, _ = mlx_lm.load(str(base), adapter_path=str(adapter))
    logits = np.array(found(mx.array(ids.tolist()))[0].astype(mx.float32))
    assert np.abs(logits - expected).max() < 1e-3 * np.abs(expected).max()
