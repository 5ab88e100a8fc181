"""Target groups of every family against what its papers and code say, and the page that says what works where."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ghosttune.models.modules import module_facts, targets_in

SCRIPTS = Path(__file__).parents[3] / "scripts"
LLAMA = ("q_proj v_proj", "q_proj k_proj v_proj o_proj", "gate_proj up_proj down_proj")
BERT = ("query value", "query key value dense", "dense")
OPT = ("q_proj v_proj", "q_proj k_proj v_proj out_proj", "fc1 fc2")
EXPECTED = {
    **dict.fromkeys(("Llama", "Qwen2, Qwen2.5", "Qwen3", "Mistral", "Gemma", "LLaVA"), LLAMA),
    "Mixtral": (LLAMA[0], LLAMA[1], ""),
    "Phi": ("q_proj v_proj", "q_proj k_proj v_proj dense", "fc1 fc2"),
    "Falcon": ("query_key_value", "query_key_value dense", "dense_h_to_4h dense_4h_to_h"),
    "GPT-2": ("c_attn", "c_attn c_proj", "c_fc c_proj"),
    "GPT-Neo": ("q_proj v_proj", "q_proj k_proj v_proj out_proj", "c_fc c_proj"),
    "GPT-J": ("q_proj v_proj", "q_proj k_proj v_proj out_proj", "fc_in fc_out"),
    **dict.fromkeys(("OPT", "BART"), OPT),
    **dict.fromkeys(("BERT", "RoBERTa"), BERT),
    "DistilBERT": ("q_lin v_lin", "q_lin k_lin v_lin out_lin", "lin1 lin2"),
    "T5": ("q v", "q k v o", "wi wo"),
}
"""Family -> last names of attention_qv, attention and mlp."""


@pytest.fixture(scope="module")
def compatibility():
    """scripts/build_compatibility.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        import build_compatibility

        yield build_compatibility
    for name in ("build_compatibility", "compatible_families"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("family", EXPECTED)
def test_target_groups_follow_the_structure(compatibility, family):
    model = compatibility.FAMILIES[family].model()
    facts = module_facts(model)
    for group, names in zip(("attention_qv", "attention", "mlp"), EXPECTED[family], strict=True):
        if names:
            found = targets_in(model, group).linear
            assert {name.rpartition(".")[2] for name in found} == set(names.split()), group
            assert not [name for name in found if "vision" in name or "lm_head" in name]
    layers = sorted({fact.layer for fact in facts if fact.layer is not None})
    assert layers == list(range(4 if family in ("T5", "BART") else 2))


def test_every_family_is_expected(compatibility):
    assert set(EXPECTED) == set(compatibility.FAMILIES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["lora", "ia3", "loha", "prefix_tuning", "full"])
@pytest.mark.parametrize("family", ["GPT-2", "BERT", "T5"])
def test_the_page_says_what_is_found(compatibility, family, method):
    found, _ = compatibility.cell(compatibility.FAMILIES[family], method)
    row = next(line for line in compatibility.PAGE.read_text().splitlines() if line.startswith(f"| {family} |"))
    assert row.split("|")[2 + list(compatibility.METHODS).index(method)].split()[0] == found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_page_is_what_the_script_writes(compatibility):
    assert compatibility.page() == compatibility.PAGE.read_text()
