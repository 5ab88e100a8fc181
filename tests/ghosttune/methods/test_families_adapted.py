"""Target groups of every family against what its papers and code say, and the page that says what works where."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from ghosttune.models.modules import module_facts, targets_in
from ghosttune.registry import METHODS

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
        yield import_module("build_compatibility")
    for name in ("build_compatibility", "compatible_families", "compatible_tasks", "build_families", "family_trials"):
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


QUICK = [("causal_lm", "GPT-2"), ("sequence_classification", "Llama"), ("question_answering", "DistilBERT")]
QUICK_METHODS = ["lora", "oft", "prompt_tuning", "prefix_tuning", "bitfit"]


def on_the_page(compatibility, task: str) -> dict[str, dict[str, str]]:
    """Family -> method -> the letters in its cell."""
    section = compatibility.PAGE.read_text().partition(f"### {task}\n")[2].partition("\n#")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    _, *methods = rows[0]
    return {name: dict(zip(methods, (cell.split()[0] for cell in cells), strict=True)) for name, *cells in rows[2:]}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("task", "family"), QUICK)
def test_the_page_says_what_is_found(compatibility, tmp_path, task, family):
    tried = compatibility.TRIED[task]
    model = tried.model(compatibility.FAMILIES[family], tmp_path / "model")
    found = {method: compatibility.cell(tried, model, method)[0] for method in QUICK_METHODS}
    page = on_the_page(compatibility, task)[family]
    assert found == {method: page[method] for method in QUICK_METHODS}


def test_the_page_has_no_cell_that_fails(compatibility):
    """Refused with a reason, or done."""
    for task in compatibility.TRIED:
        cells = [cell for row in on_the_page(compatibility, task).values() for cell in row.values()]
        assert cells and set(cells) <= {"refused", *(["tsrg", "tsrgm"] if task.endswith("_lm") else ["tsr", "tsrm"])}


def test_every_method_has_a_column(compatibility):
    for task in compatibility.TRIED:
        for row in on_the_page(compatibility, task).values():
            assert row.keys() == {*METHODS.names(), *compatibility.KINDS}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", ["causal_lm", "seq2seq_lm", *(task for task, _ in QUICK[1:]), "token_classification"])
def test_a_third_of_the_page_is_what_the_script_finds(compatibility, tmp_path, task):
    """Every family and every method, in another third of the cells for each family."""
    page, methods = on_the_page(compatibility, task), list(compatibility.METHODS)
    models = compatibility.Page(tmp_path).models(task)
    assert page.keys() == {name for name, model in models.items() if not isinstance(model, str)}
    for place, name in enumerate(page):
        for method in methods[place % 3 :: 3]:
            assert compatibility.cell(compatibility.TRIED[task], models[name], method)[0] == page[name][method]
