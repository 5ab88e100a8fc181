"""LoRA that training rows begin: the same factors as from all of their activations or gradients at once, densely."""

from __future__ import annotations

import json
import re
from typing import Any

import peft
import pytest
import torch
from interrupting import interrupt_at
from method_cases import CASES, Case
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import Tensor
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from ghosttune.errors import ConfigError, GhosttuneError
from ghosttune.methods.lora import FROM_ROWS
from ghosttune.models.builtin import builtin_model_folder
from ghosttune.models.loading import add_adapter, load_model
from ghosttune.models.upstream import without_upstream_warnings
from ghosttune.run.tables import read_table
from ghosttune.stages.model import adapted_model, initialisation_of
from ghosttune.stages.prepare import prepare
from ghosttune.training import initialising
from ghosttune.training.initialising import WAYS, Initialisation, leading
from ghosttune.workflows.check import check
from ghosttune.workflows.train import Stopped, resume, train

R = 3


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> str:
    """A folder whose linear layers keep their weights as [inputs, outputs]."""
    folder, source = tmp_path_factory.mktemp("gpt2"), builtin_model_folder("builtin:tiny")
    tokenizer = AutoTokenizer.from_pretrained(source)
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=16, n_layer=1, n_head=2, **ends)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def family(request, tiny_model, gpt2) -> str:
    """The folder of a Llama or a GPT-2."""
    return {"llama": str(tiny_model), "gpt2": gpt2}[request.param]


both = pytest.mark.parametrize("family", ["llama", "gpt2"], indirect=True)


def made_of(prepared: Any, adapted: Any) -> Initialisation:
    made = initialisation_of(prepared, adapted)
    assert made is not None
    return made


class World:
    """A model whose adapter rows have begun, the untouched base in float64, and the rows."""

    def __init__(self, config: Any):
        self.prepared = prepare(config)
        self.adapted = adapted_model(self.prepared)
        self.initialisation = made_of(self.prepared, self.adapted)
        self.untouched = load_model(config.model, config.train.seed).eval()
        self.base = load_model(config.model, config.train.seed).double().eval()
        self.rows = self.initialisation.rows

    def layers(self) -> dict[str, Any]:
        """By name in the untouched base."""
        base = self.adapted.model.get_base_model()
        return {name: layer for name, layer in base.named_modules() if hasattr(layer, "lora_A")}

    def inputs(self) -> dict[str, Tensor]:
        """[N, d_in] of each layer: all positions of all rows, stacked."""
        seen: dict[str, list[Tensor]] = {name: [] for name in self.layers()}
        for name, kept in seen.items():
            self.base.get_submodule(name).register_forward_hook(lambda _, x, __, kept=kept: kept.append(x[0][0]))
        for row in self.rows:
            self.base(input_ids=torch.tensor(row.input_ids[None], dtype=torch.long))
        return {name: torch.cat(kept).detach() for name, kept in seen.items()}

    def gradients(self) -> dict[str, Tensor]:
        """[d_out, d_in] of each weight, from one batch of all rows."""
        self.base.requires_grad_(True)
        batch = self.prepared.collator(self.rows)
        self.prepared.task.example_loss(self.base, batch).sum().backward()
        return {name: self.oriented(name, self.base.get_submodule(name).weight.grad) for name in self.layers()}

    def oriented(self, name: str, weight: Any) -> Tensor:
        """[d_out, d_in]."""
        return weight.T if type(self.base.get_submodule(name)).__name__ == "Conv1D" else weight

    def weight(self, name: str) -> Tensor:
        return self.oriented(name, self.base.get_submodule(name).weight).detach()


def factors(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.lora_A["default"].weight.detach().double(), layer.lora_B["default"].weight.detach().double()


def close(found: Tensor, wanted: Tensor, share: float = 1e-3) -> bool:
    return float((found - wanted).norm()) <= share * float(wanted.norm())


@pytest.fixture
def world(make_config, family):
    def make(start: str, **changes: Any) -> World:
        fixed = {"model__name": family, "method__r": R, "method__lora_alpha": 5.0}
        made = World(make_config(method__init_lora_weights=start, **fixed, **changes))
        made.adapted.model.train()  # as GPT-2's dropout must not show
        made.initialisation.apply()
        return made

    return make


@both
def test_eva_has_the_leading_directions_of_all_inputs(world):
    """Around their mean, from one dense decomposition; orthonormal, with B zero."""
    made = world("eva", method__init_rows=9)
    for name, inputs in made.inputs().items():
        first, second = factors(made.layers()[name])
        _, _, rights = torch.linalg.svd(inputs - inputs.mean(0), full_matrices=False)
        assert close(first.T @ first, rights[:R].T @ rights[:R]), name
        assert close(first @ first.T, torch.eye(R, dtype=torch.float64)) and not second.any()


@both
def test_corda_has_the_part_of_the_weight_that_does_most_to_such_inputs(world):
    """U S Vᵀ C⁻¹ of W C, dense and in float64; its difference from W is the least in the norm of C."""
    made = world("corda", method__init_rows=9)
    for name, inputs in made.inputs().items():
        layer = made.layers()[name]
        first, second = factors(layer)
        moments = inputs.T @ inputs / len(inputs)
        moments += 0.01 * moments.diagonal().mean() * torch.eye(len(moments))
        left, sizes, right = torch.linalg.svd(made.weight(name) @ moments)
        part = left[:, :R] * sizes[:R] @ right[:R] @ torch.linalg.inv(moments)
        assert close(layer.scaling["default"] * second @ first, part), name
        assert close(second.norm(dim=0) ** 2, sizes[:R] / layer.scaling["default"]), "the two share what there is"


@both
def test_corda_of_one_row_is_what_peft_takes_out_of_the_base(world, family):
    """PEFT divides each row by its largest input, which for one row changes nothing."""
    made = world("corda", method__init_rows=1)
    ids = torch.tensor(made.rows[0].input_ids[None], dtype=torch.long)
    own = made.untouched
    config = peft.LoraConfig(
        r=R,
        lora_alpha=5,
        target_modules=list(made.layers()),
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method="ipm"),
        fan_in_fan_out="gpt2" in family,
    )
    preprocess_corda(own, config, run_model=lambda: own(input_ids=ids))
    with without_upstream_warnings():
        theirs: Any = peft.get_peft_model(own, config).get_base_model()
    for name, layer in made.layers().items():
        first, second = factors(layer)
        taken = made.weight(name) - made.oriented(name, theirs.get_submodule(name).base_layer.weight.double())
        assert close(layer.scaling["default"] * second @ first, taken, 0.01), name


@both
def test_lora_ga_begins_where_its_first_step_is_the_gradients_own(world):
    """B Bᵀ G + G Aᵀ A, the way of one step on both, is √d_out / γ times G cut to rank 2 r."""
    made = world("lora_ga", method__init_rows=9)
    for name, gradient in made.gradients().items():
        first, second = factors(made.layers()[name])
        left, sizes, right = torch.linalg.svd(gradient, full_matrices=False)
        cut = left[:, : 2 * R] * sizes[: 2 * R] @ right[: 2 * R]
        way = second @ second.T @ gradient + gradient @ first.T @ first
        assert close(way, len(gradient) ** 0.5 / initialising.GAMMA * cut), name
        assert close(first.T @ first * initialising.GAMMA / len(gradient) ** 0.5, right[:R].T @ right[:R]), name


@pytest.mark.parametrize("family", ["llama"], indirect=True)
@pytest.mark.parametrize("start", FROM_ROWS)
def test_layers_in_parts_begin_with_the_same_bytes(world, monkeypatch, start):
    whole = world(start, method__init_rows=4)
    monkeypatch.setattr(initialising, "HELD", 1)
    parts = world(start, method__init_rows=4)
    assert (whole.initialisation.described()["passes"], parts.initialisation.described()["passes"]) == (1, 14)
    assert parts.initialisation.held < whole.initialisation.held
    for name, layer in whole.layers().items():
        assert all(torch.equal(*pair) for pair in zip(factors(layer), factors(parts.layers()[name]), strict=True))


@both
@pytest.mark.parametrize("start", FROM_ROWS)
def test_the_base_is_untouched_and_the_start_is_zero_in_effect(world, start):
    made = world(start)
    before, inside = made.untouched.state_dict(), made.adapted.model.get_base_model().state_dict()
    found = {name.replace(".base_layer", ""): tensor for name, tensor in inside.items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in before.items())
    ids = torch.tensor(made.rows[0].input_ids[None], dtype=torch.long)
    with torch.no_grad():
        adapted, base = (model.eval()(input_ids=ids).logits for model in (made.adapted.model, made.untouched))
    torch.testing.assert_close(adapted, base, rtol=1e-5, atol=1e-5)
    moved = [layer for layer in made.layers().values() if layer.lora_B["default"].weight.any()]
    assert len(moved) == (0 if start == "eva" else len(made.layers()))


@pytest.mark.parametrize("start", FROM_ROWS)
def test_a_run_begins_with_the_rows_it_trains_first_and_says_so(make_config, tmp_path, start):
    """Those of its first three updates, as its own ledger has them; `check` predicts what run.json records."""
    settings = {"method__r": R, "method__init_lora_weights": start, "method__init_rows": 12}
    config = make_config(**settings, measure__ledger__guide_every=3, data__guide__rows=4, train__max_steps=3)
    prepared = prepare(config)
    chosen = [row.example_id for row in made_of(prepared, adapted_model(prepared)).rows]
    run = train(config, tmp_path / "run")
    table = read_table(run.folder, "ledger", ["step", "example_id"]).to_pylist()
    assert set(chosen) == {row["example_id"] for row in table if row["step"] <= 3} and len(chosen) == 12
    recorded = run.record["initialisation"]
    assert recorded == check(config).plan["initialisation"]
    assert (recorded["method"], recorded["rows"], recorded["passes"]) == (start, 12, 1)
    assert json.loads((run.folder.adapter / "adapter_config.json").read_text())["r"] == (R if start == "eva" else 2 * R)


@pytest.mark.parametrize("family", ["llama"], indirect=True)
@pytest.mark.parametrize(
    "kind", [{"method__use_dora": True}, {"method__parameter_budget": 2500}], ids=["dora", "budget"]
)
def test_eva_goes_with_dora_and_with_a_budget(world, kind):
    made = world("eva", **kind)
    layers = made.layers()
    assert len({layer.r["default"] for layer in layers.values()}) == (2 if "method__parameter_budget" in kind else 1)
    for name, inputs in made.inputs().items():
        rank, (first, _) = layers[name].r["default"], factors(layers[name])
        _, _, rights = torch.linalg.svd(inputs - inputs.mean(0), full_matrices=False)
        assert close(first.T @ first, rights[:rank].T @ rights[:rank]), name
    ids = torch.tensor(made.rows[0].input_ids[None], dtype=torch.long)
    with torch.no_grad():
        adapted, base = (model.eval()(input_ids=ids).logits for model in (made.adapted.model, made.untouched))
    torch.testing.assert_close(adapted, base, rtol=1e-5, atol=1e-5)


def test_a_leading_part_is_near_the_best():
    """Where fewer directions are followed than there are: of slowly falling sizes, 99.9 % of the best part's."""
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(200, 200, generator=generator))[0] for _ in range(2))
    matrix = left * torch.arange(1, 201) ** -0.7 @ right.T
    u, sizes, v = leading(matrix, 4)
    best = torch.arange(1, 5) ** -0.7
    assert torch.linalg.norm(u.T @ matrix @ v) >= 0.999 * torch.linalg.norm(best)
    assert all(torch.equal(*pair) for pair in zip(leading(matrix, 4), (u, sizes, v), strict=True))


def test_every_start_that_rows_decide_has_a_way():
    assert set(WAYS) == set(FROM_ROWS)


@pytest.mark.parametrize(
    ("settings", "where", "said"),
    [
        ({"init_lora_weights": "lora_ga", "r": 5}, "method.r", "at most 4 for lora_ga"),
        ({"init_lora_weights": "corda", "r": 9}, "method.r", "at most 8 for corda"),
        ({"init_lora_weights": "eva", "r": 17}, "method.r", "at most 16 for eva"),
        ({"init_lora_weights": "eva", "parameter_budget": 20_000}, "method.parameter_budget", "eva at most 16"),
        ({"init_lora_weights": "loftq"}, "method.init_lora_weights", "pissa, olora, eva, corda, lora_ga"),
    ],
)
def test_what_a_start_cannot_do_is_refused(make_config, settings, where, said):
    with pytest.raises(ConfigError, match=said) as found:
        config = make_config(**{f"method__{name}": value for name, value in settings.items()})
        add_adapter(load_model(config.model, 0), config.method, 0)
    assert [problem.setting for problem in found.value.problems] == [where]


@pytest.mark.parametrize("start", FROM_ROWS)
def test_a_layer_that_no_row_reaches_is_named_before_anything_is_written(make_config, tmp_path, monkeypatch, start):
    """Rows whose last block is passed by."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    forward = LlamaDecoderLayer.forward
    monkeypatch.setattr(
        LlamaDecoderLayer,
        "forward",
        lambda own, x, *a, **k: x if own.self_attn.layer_idx == 1 else forward(own, x, *a, **k),
    )
    config = make_config(method__init_lora_weights=start, method__r=R)
    with pytest.raises(GhosttuneError, match=r"layers\.1\.self_attn\.q_proj: .*raise method\.init_rows"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("start", "rank"), [("eva", 8), ("corda", 8), ("lora_ga", 4)])
def test_rows_too_short_for_a_rank_are_refused_by_check_and_train(make_config, tmp_path, start, rank):
    rows = tmp_path / "short.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n}", "completion": "b"}) + "\n" for n in range(30)))
    settings = {"method__init_lora_weights": start, "method__init_rows": 1, "method__r": rank}
    config = make_config(data__train__path=str(rows), **settings)
    said = f"method.init_rows: gives {start} 1 rows of . tokens, and method.r needs 9; raise it"
    assert re.search(said, str(check(config).errors)), check(config).errors
    with pytest.raises(ConfigError, match=said):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_memory_of_the_start_is_part_of_the_prediction(make_config):
    from ghosttune.training.memory import Sizes, plan_of, predicted

    plan = plan_of(make_config())
    sizes = Sizes(10, 10, kept=5.0, largest=2.0)
    assert predicted(sizes, plan)["activations"] < 1000
    assert predicted(Sizes(10, 10, kept=5.0, largest=2.0, starting=1000), plan)["activations"] == 1007


@pytest.mark.parametrize("start", FROM_ROWS)
def test_it_has_a_case(start):
    """So that it learns, resumes to the same bytes, is read back, merged and measured like any other method."""
    assert Case("lora", {"r": 4, "init_lora_weights": start}, CASES[start].learning_rate) == CASES[start]


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("start", FROM_ROWS)
def test_a_resumed_run_begins_no_more(make_config, tmp_path, monkeypatch, start):
    """What a checkpoint holds is the whole start, and the run ends in the same bytes."""
    settings = {"method__init_lora_weights": start, "method__r": R, "train__save_steps": 2}
    config = make_config(**settings, measure__ledger__guide_every=3, data__guide__rows=4)
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, tmp_path / "parts", listen=interrupt_at(4))
    monkeypatch.setattr(Initialisation, "apply", lambda own: pytest.fail("began once more"))
    parts = resume(tmp_path / "parts")
    for name in ("adapter/adapter_model.safetensors", "checkpoints/step-6/weights.safetensors", "metrics.jsonl"):
        assert (whole.path / name).read_bytes() == (parts.path / name).read_bytes(), name
    assert parts.record["initialisation"] == whole.record["initialisation"]
