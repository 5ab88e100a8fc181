"""Packed rows are what they are alone: layout, losses, gradients, numbers of single rows, whole runs, and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupting import interrupt_at

from ghostgrad import Dots, Norms, WeightedSum
from ghostgrad.testing import one_backward_per_example
from ghosttune import train
from ghosttune.config.facts import CAUSAL_LM
from ghosttune.config.schema import section_class
from ghosttune.data.encoding import IGNORED, Collator, Features
from ghosttune.data.packing import NOBODY, PackingCollator, cheapest, dealt
from ghosttune.errors import ConfigError
from ghosttune.models.loading import add_adapter, load_model
from ghosttune.proving.freezing import differences
from ghosttune.run.tables import read_table
from ghosttune.tasks.causal import CausalTask
from ghosttune.training.engines import row_engine
from ghosttune.training.instruments import MicroBatch
from ghosttune.training.packed import WIDTHS_REACHED, why_not_packed
from ghosttune.workflows.check import check
from ghosttune.workflows.train import Stopped, resume

SLOW = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings("ignore")

VOCABULARY = 40
LENGTHS = (3, 9, 2, 5, 7, 4)


def rows_of(lengths: tuple[int, ...] = LENGTHS) -> list[Features]:
    """Random rows, the last two thirds of each trained."""
    random = np.random.default_rng(0)
    return [
        Features(n, f"row {n}", random.integers(3, VOCABULARY, length), np.arange(length) >= max(1, length // 3))
        for n, length in enumerate(lengths)
    ]


# --- which rows go together ---


lengths_of_rows = st.lists(st.integers(1, 500), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(lengths_of_rows, st.floats(1, 1e6))
def test_every_row_is_in_one_sequence_and_none_costs_more_than_alone(lengths, reach):
    sequences = cheapest(lengths, reach)
    assert sorted(place for sequence in sequences for place in sequence) == list(range(len(lengths)))
    longest = max(sum(lengths[place] for place in sequence) for sequence in sequences)
    cost = len(sequences) * longest * (longest + reach)
    assert cost <= len(lengths) * max(lengths) * (max(lengths) + reach)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.data())
def test_the_longest_sequence_is_near_the_shortest_possible(lengths, data):
    """Against all ways to deal the rows."""
    from itertools import product

    count = data.draw(st.integers(1, min(3, len(lengths))))
    found = max(sum(lengths[place] for place in sequence) for sequence in dealt(lengths, count))
    best = min(
        max(sum(length for length, at in zip(lengths, ways, strict=True) if at == n) for n in range(count))
        for ways in product(range(count), repeat=len(lengths))
    )
    assert best <= found <= 4 / 3 * best


def test_long_attention_keeps_sequences_short_and_short_attention_packs():
    lengths = [100, 60, 50, 40, 30, 20]
    assert len(cheapest(lengths, 1e9)) == 1
    assert len(cheapest(lengths, 100)) == 3
    assert len(cheapest([7] * 8, 1)) == 8


@pytest.mark.parametrize("reach", [None, 4.0, 1e9])
def test_a_packed_batch_holds_the_rows_and_nothing_else(reach):
    rows = rows_of()
    batch = PackingCollator(1, reach)(rows)
    owner = batch["row_of_position"]
    for place, row in enumerate(rows):
        mine = owner == place
        assert len(set(mine.nonzero()[:, 0].tolist())) == 1, "a row stands in one sequence"
        assert batch["input_ids"][mine].tolist() == row.input_ids.tolist()
        assert batch["position_ids"][mine].tolist() == list(range(len(row)))
        assert batch["labels"][mine].tolist() == np.where(row.trained, row.input_ids, IGNORED).tolist()
    padding = owner == NOBODY
    assert batch["labels"][padding].eq(IGNORED).all() and batch["input_ids"][padding].eq(1).all()
    assert batch["position_ids"][padding].eq(0).all()
    assert batch["example_index"].tolist() == list(range(len(rows)))
    if reach is None:
        assert owner.shape == (1, sum(LENGTHS))
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


# --- one batch, packed and not ---


def model_of(family: str, method: str = "lora", **shape: Any) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "pad_token_id": 0,
    }
    own: dict[str, dict[str, Any]] = {
        "gpt2": {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
        "gemma3_text": sizes | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    }
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **own.get(family, sizes) | shape)
    base: Any = transformers.AutoModelForCausalLM.from_config(config)
    base.load_again = lambda: base
    chosen: Any = section_class("method", method)()
    model = add_adapter(base.requires_grad_(False), chosen, 0, CAUSAL_LM).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


FAMILIES = ("llama", "gpt2", "qwen3", "gemma3_text")
"""With rotary and with learned positions, norms of each head, and sliding windows."""


@pytest.mark.parametrize("reach", [None, 4.0, 30.0])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_gradients_and_rows_of_a_packed_batch(family, method, reach):
    """Against one backward pass per row of the same rows, each in a sequence of its own; in float64."""
    task, rows = CausalTask(), rows_of()
    model = model_of(family, method)
    padded, packed = Collator(0)(rows), PackingCollator(0, reach)(rows)
    assert packed["input_ids"].numel() < padded["input_ids"].numel()
    expected = task.example_loss(model, padded)
    torch.testing.assert_close(task.example_loss(model, packed), expected, rtol=1e-6, atol=0)
    reference = one_backward_per_example(expected, model.named_parameters())
    direction = {name: torch.randn_like(rows[0]) for name, rows in reference.items()}
    norms, dots, sums = Norms(), Dots(direction), WeightedSum()
    engine = row_engine(model, "refuse")
    head, positions = task.head_positions(model, packed)
    seen = MicroBatch([row.example_id for row in rows], head, positions, packed["row_of_position"])
    with engine.observe(norms, dots, sums, examples=seen.row_of_position, selected=seen.selected(engine)):
        task.example_loss(model, packed).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    largest = max(float(rows.flatten(1).norm(dim=1).max()) for rows in reference.values())
    for name, wanted in reference.items():
        # Llama's and Gemma's norms work in float32 whatever the model's dtype
        close: Any = {"rtol": 1e-5, "atol": 1e-6 * largest}
        torch.testing.assert_close(gradients[name], wanted.sum(0), **close)
        torch.testing.assert_close(sums.values[name], wanted.sum(0), **close)
        torch.testing.assert_close(norms.values[name].sqrt(), wanted.flatten(1).norm(dim=1), **close)
        product = wanted.flatten(1) @ direction[name].flatten()
        torch.testing.assert_close(
            dots.values[name], product, rtol=1e-5, atol=1e-6 * largest * float(direction[name].norm())
        )


# --- models whose rows would see each other ---


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_tell_rows_apart(family, attention):
    model = model_of(family)
    model.get_base_model().set_attn_implementation(attention)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert why_not_packed(CausalTask(), model.float(), Collator(0), rows_of((6, 4))) is None
    assert why_not_packed(CausalTask(), model.double(), Collator(0), rows_of((5,))) is None
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor.float(), before[name].float()) for name, tensor in model.state_dict().items())


def test_a_model_that_looks_at_no_positions_is_refused(monkeypatch):
    """The same Llama, whose mask is that of one long row."""
    model = model_of("llama")
    from transformers import masking_utils

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    reason = why_not_packed(CausalTask(), model, Collator(0), rows_of((6, 4)))
    assert reason == "a row would see those before it in its sequence"


def test_a_model_whose_positions_do_not_begin_again_is_refused(monkeypatch):
    """The same GPT-2, which masks what is not a row's own and counts on all the same."""
    model = model_of("gpt2")
    table = model.get_base_model().transformer.wpe
    own = table.forward
    monkeypatch.setattr(table, "forward", lambda ids: own(torch.arange(ids.shape[1])[None].expand_as(ids)))
    reason = why_not_packed(CausalTask(), model, Collator(0), rows_of((6, 4)))
    assert reason is not None and reason.startswith("a row behind another has another loss than alone")


@pytest.mark.parametrize("family", ["mamba", "bloom", "lfm2", "recurrent_gemma", "rwkv"])
def test_families_with_states_and_other_masks_are_refused(family):
    """Proved by the trial, and seen in the losses themselves: another first row changes what is said of the second."""
    shapes: dict[str, dict[str, Any]] = {
        "mamba": {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2},
        "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
        "lfm2": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
        "recurrent_gemma": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
        | {"num_attention_heads": 2, "lru_width": 16, "head_dim": 8},
        "rwkv": {"hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 2},
    }
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, vocab_size=VOCABULARY, **shapes[family])
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    task, rows = CausalTask(), rows_of((6, 4, 6))
    assert why_not_packed(task, model, Collator(0), rows[:2]) is not None
    with torch.no_grad():
        second, third = (
            task.example_loss(model, PackingCollator(0, None).laid_out(rows, [[0, 1]]))
            for rows in ([rows[0], rows[1]], [rows[2], rows[1]])
        )
    assert not torch.allclose(second[1], third[1], rtol=1e-6, atol=0)


# --- whole runs ---


MEASURED: dict[str, Any] = {
    "train__per_device_train_batch_size": 5,
    "train__group_by_length": False,
    "train__logging_steps": 1,
    "train__warmup_steps": 0,
    "train__save_steps": 2,
    "measure__norms__every": 1,
    "measure__norms__effective": 2,
    "measure__ledger__guide_every": 2,
    "data__guide__rows": 4,
    "evaluate__limit": 0,
}


@pytest.fixture
def packs(monkeypatch):
    """The tiny model, for which attention soon costs more than all else, packs all the same."""
    monkeypatch.setitem(WIDTHS_REACHED, "sdpa", 1e4)


@pytest.mark.parametrize(
    "other",
    [
        {"data__online_selection__by": "value", "data__online_selection__candidates": 2},
        pytest.param({}, marks=SLOW),
        pytest.param({"train__gradient_accumulation_steps": 2, "train__per_device_train_batch_size": 3}, marks=SLOW),
        pytest.param({"method__type": "full", "train__learning_rate": 0.001}, marks=SLOW),
        pytest.param({"phases": {"strategy": "plan", "plan": "mlp@0-3 > both@3-6"}}, marks=SLOW),
    ],
    ids=["selected", "lora", "accumulated", "full", "phases"],
)
def test_a_packed_run_is_the_run(packs, make_config, tmp_path, monkeypatch, other):
    """The same rows in every update: losses, norms, values and credits of rows, account.

    In float64: AdamW's first updates divide by gradients that are all but zero, and what float32 rounds there is no
    longer small.
    """
    monkeypatch.setattr("ghosttune.stages.model.load_model", lambda *given: load_model(*given).double())
    runs = {
        packing: train(make_config(**MEASURED | other, train__packing=packing), tmp_path / str(packing))
        for packing in (False, True)
    }
    padded, packed = runs.values()
    assert packed.record["padding_share"] < padded.record["padding_share"]
    losses = [[event["loss"] for event in run.folder.events() if "loss" in event] for run in (padded, packed)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    tables = [
        "norms",
        "effective",
        "ledger",
        "module_steps",
        *(["selection"] if "data__online_selection__by" in other else []),
    ]
    for table in tables:
        columns = [read_table(run.folder, table).to_pydict() for run in (padded, packed)]
        for name, wanted in columns[0].items():
            if not any(isinstance(value, float) for value in wanted):
                assert columns[1][name] == wanted, (table, name)
                continue
            one, two = (np.array(column[name], float) for column in columns)
            scale = np.nanmax(np.abs(one))
            np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-4 * scale, err_msg=f"{table} {name}")
    account = [run.record["ledger"] for run in (padded, packed)]
    for name in ("guide_loss_end", "modules", "rows", "residual"):
        assert account[1][name] == pytest.approx(account[0][name], rel=1e-4, abs=1e-5), name


@SLOW
def test_a_packed_run_that_was_interrupted_ends_in_the_same_bytes(packs, make_config, tmp_path):
    config = make_config(**MEASURED, train__packing=True)
    train(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, tmp_path / "parts", listen=interrupt_at(3))
    resume(tmp_path / "parts")
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"task__type": "sequence_classification"}, "is for task.type causal_lm"),
        ({"method__type": "prefix_tuning"}, "whose learned prompt stands in front of a sequence"),
    ],
    ids=str,
)
def test_what_cannot_be_packed_is_refused_by_the_configuration(make_config, settings, said):
    with pytest.raises(ConfigError, match=f"train.packing.*{said}"):
        make_config(**settings, train__packing=True)


def test_a_model_that_cannot_is_refused_by_check_and_by_training(make_config, tmp_path, monkeypatch):
    from transformers import masking_utils

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    config = make_config(train__packing=True)
    report = check(config)
    said = "(llama): in one sequence, a row would see those before it in its sequence; set it to false"
    assert len(report.errors) == 1 and said in report.errors[0] and report.refused == {"train.packing"}
    with pytest.raises(ConfigError, match="a row would see those before it"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
