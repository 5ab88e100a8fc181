"""Attaching changes nothing, detaching leaves nothing, and what cannot be exact is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ghostgrad import Dots, GradientEngine, Gram, Norms, UnsupportedLayer, WeightedSum
from ghostgrad.testing import one_backward_per_example
from ghostgrad.tiny import Switches, losses, padded, tiny
from processes import run_group


def trained(switches: Switches, observed: bool, dtype: torch.dtype) -> tuple[dict, dict, Tensor]:
    """Weights, optimizer state and RNG after five AdamW steps with accumulation, clipping and dropout."""
    torch.manual_seed(0)
    model = tiny(switches, dtype=dtype)
    model.blocks[0].up = nn.Sequential(model.blocks[0].up, nn.Dropout(0.3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    engine = GradientEngine(model)
    direction = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for step in range(5):
        for micro in range(2):
            observers = (Norms(), Dots(direction), Gram(), WeightedSum()) if observed else ()
            with engine.observe(*observers):
                (losses(model, padded(4, seed=10 * step + micro), 4).sum() / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict(), optimizer.state_dict()["state"], torch.random.get_rng_state()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("switches", [Switches(), Switches(tied=True, reused=True, checkpointed=True)], ids=str)
def test_training_is_bit_identical(switches: Switches, dtype: torch.dtype) -> None:
    plain, seen = (trained(switches, observed, dtype) for observed in (False, True))
    assert all(torch.equal(value, seen[0][name]) for name, value in plain[0].items())
    for place, state in plain[1].items():
        assert all(torch.equal(value, seen[1][place][name]) for name, value in state.items())
    assert torch.equal(plain[2], seen[2])


def trace(model: nn.Module) -> list[object]:
    """Everything an engine could leave behind."""
    modules = [
        (name, type(m), sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for name, m in model.named_modules()
    ]
    parameters = [(n, p.requires_grad, p._backward_hooks, sorted(vars(p))) for n, p in model.named_parameters()]
    return [modules, parameters, list(model.state_dict())]


@pytest.mark.parametrize("fails", [False, True])
def test_detach_leaves_no_trace(fails: bool) -> None:
    model = tiny()
    model.places.requires_grad_(False)
    before = trace(model)
    engine = GradientEngine(model)
    assert trace(model) == before
    try:
        with engine.observe(Norms(), Gram()):
            assert trace(model) != before
            losses(model, padded(3), 3).sum().backward()
            if fails:
                raise KeyError("the caller's own")
    except KeyError:
        assert fails
    assert trace(model) == before


def test_without_observers_nothing_is_installed() -> None:
    model = tiny()
    before = trace(model)
    with GradientEngine(model).observe():
        assert trace(model) == before


def test_two_engines_can_observe_one_step() -> None:
    model, batch, first, second = tiny(), padded(3), Norms(), Norms()
    with GradientEngine(model).observe(first), GradientEngine(model, select=["head.*"]).observe(second):
        losses(model, batch, 3).sum().backward()
    assert torch.equal(first.values["head.weight"], second.values["head.weight"])


def test_activations_are_not_kept_alive() -> None:
    """What autograd frees in backward is freed with the engine too: nothing hangs on modules or the engine."""
    model, batch, norms = tiny(), padded(4), Norms()
    engine = GradientEngine(model)
    with engine.observe(norms):
        logits = model(batch)
        held = logits.grad_fn
        logits.sum().backward()
    with pytest.raises(RuntimeError, match="already been freed"):
        _ = held.saved_tensors


def kept_for_backward(switches: Switches, observed: bool) -> int:
    """Bytes of distinct memory that the forward keeps for backward, checkpointed blocks not counted."""
    model, kept = tiny(switches, dtype=torch.float32), {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    observers = (Norms(), Gram()) if observed else ()
    with GradientEngine(model).observe(*observers):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            total = losses(model, padded(8, longest=16), 8).sum()
        total.backward()
    return sum(kept.values())


@pytest.mark.parametrize("switches", [Switches(), Switches(checkpointed=True)], ids=str)
def test_little_more_is_kept_for_backward(switches: Switches) -> None:
    """Inputs are those autograd keeps itself; checkpointed blocks keep theirs dropped. The bound is A11's."""
    assert kept_for_backward(switches, True) <= 1.15 * kept_for_backward(switches, False)


def test_an_evaluation_between_forward_and_backward_changes_nothing() -> None:
    model, batch, norms, apart = tiny(), padded(4), Norms(), Norms()
    engine = GradientEngine(model)
    with engine.observe(norms):
        total = losses(model, batch, 4).sum()
        with torch.no_grad():
            model(padded(6, seed=3))
        total.backward()
    with engine.observe(apart):
        losses(model, batch, 4).sum().backward()
    assert torch.equal(norms.total(), apart.total())


def test_misuse_is_an_error_not_a_stale_number() -> None:
    model, batch = tiny(), padded(4)
    engine = GradientEngine(model)
    with pytest.raises(RuntimeError, match="saw no backward"), engine.observe(Norms()):
        losses(model, batch, 4)
    with pytest.raises(RuntimeError, match="one observe"), engine.observe(Norms()):
        losses(model, batch, 4).sum().backward()
        losses(model, batch, 4).sum().backward()
    with pytest.raises(RuntimeError, match="two gradients"), engine.observe(Norms()):
        total = losses(model, batch, 4).sum()
        total.backward(retain_graph=True)
        total.backward()
    with pytest.raises(ValueError, match="selected"), engine.observe(Norms(), selected={"hed": torch.zeros(3)}):
        pass
    with pytest.raises(RuntimeError, match="saw no backward"), engine.probe(Norms()):
        losses(model, batch, 4)
    with pytest.raises(ValueError, match="computes nothing"), engine.probe():
        pass
    with pytest.raises(ValueError, match="observe a backward"):
        Norms().total()
    wrong = Dots({"head.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"head\.weight"), engine.observe(wrong):
        pass


def test_a_layer_whose_rows_are_not_examples_is_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, values: Tensor) -> Tensor:
            flat = torch.cat([values.flatten(0, 1), values.new_ones(1, 4)])
            return self.inner(flat)[:-1].unflatten(0, values.shape[:2])

    model, values = Flat(), torch.randn(3, 5, 4)
    engine, norms = GradientEngine(model), Norms()
    with pytest.raises(UnsupportedLayer, match=r"inner.*\[16\]"), engine.observe(norms):
        model(values).sum().backward()
    owners = torch.cat([torch.arange(3).repeat_interleave(5), torch.tensor([-1])])
    with engine.observe(norms, selected={"inner": owners}):
        model(values).square().sum().backward()
    reference = one_backward_per_example(model(values).square().sum((1, 2)), model.named_parameters())
    expected = sum(value.flatten(1).square().sum(1) for value in reference.values()).sqrt()
    torch.testing.assert_close(norms.total(), expected)


def test_a_lookup_that_may_be_per_position_is_refused() -> None:
    """With as many positions as examples the rows would be wrong and the sum right."""

    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Embedding(9, 4)

        def forward(self, values: Tensor) -> Tensor:
            return values * self.places(torch.arange(values.shape[1]))

    model, values = Learned(), torch.randn(5, 5, 4)
    with pytest.raises(UnsupportedLayer, match=r"places.*per position"), GradientEngine(model).observe(Norms()):
        model(values).sum().backward()


def test_a_weight_used_outside_its_module_is_found() -> None:
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return nn.functional.linear(self.table(ids), self.table.weight)

    model = Outside()
    with pytest.raises(UnsupportedLayer, match=r"table\.weight"), GradientEngine(model).observe(Norms()):
        model(torch.randint(0, 5, (3, 4))).square().sum().backward()


def test_batch_norm_is_refused_while_it_mixes_examples() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False))
    engine = GradientEngine(model)
    with pytest.raises(UnsupportedLayer, match="BatchNorm1d that mixes"), engine.observe(Norms()):
        pass
    model.eval()
    with engine.observe(Norms()):
        model(torch.randn(3, 4)).square().sum().backward()


def test_a_compiled_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    with pytest.raises(UnsupportedLayer, match="compiled"):
        GradientEngine(torch.compile(tiny(), backend="eager"))
    inside = tiny()
    inside.blocks[0].compile(backend="eager")
    with pytest.raises(UnsupportedLayer, match=r"blocks\.0 is compiled"):
        GradientEngine(inside)


def test_an_in_place_operation_after_a_tapped_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(27, 2))
    values, norms = torch.randn(4, 2, 5, 5), Norms()
    with GradientEngine(model).observe(norms):
        model(values).square().sum().backward()
    reference = one_backward_per_example(model(values).square().sum(1), model.named_parameters())
    expected = sum(value.flatten(1).square().sum(1) for value in reference.values()).sqrt()
    torch.testing.assert_close(norms.total(), expected)


@pytest.mark.parametrize("inside", [False, True], ids=["backward outside autocast", "backward inside autocast"])
def test_autocast(inside: bool) -> None:
    """bfloat16 rounding is the model's; the sums are float32: 2 % of the float32 gradient, ranks kept."""
    model, batch = tiny(dtype=torch.float32), padded(32, longest=12)
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    reference = one_backward_per_example(losses(model, batch, 32), model.named_parameters())
    exact = sum(value.flatten(1) @ direction[name].flatten() for name, value in reference.items())
    dots, norms = Dots(direction), Norms()
    with GradientEngine(model).observe(dots, norms):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = losses(model, batch, 32).sum()
            if inside:
                total.backward()
        if not inside:
            total.backward()
    lengths = sum(value.flatten(1).square().sum(1) for value in reference.values()).sqrt()
    size = sum(value.square().sum() for value in direction.values()).sqrt()
    assert dots.total().dtype == torch.float32
    assert ((dots.total() - exact).abs() / (lengths * size + 1e-9)).max() < 2e-2
    ranks = torch.stack([dots.total().argsort().argsort(), exact.argsort().argsort()]).double()
    assert torch.corrcoef(ranks)[0, 1] >= 0.99


def test_half_precision_weights() -> None:
    model, batch = tiny(dtype=torch.bfloat16), padded(4)
    twin = copy.deepcopy(model).float()
    norms, exact = Norms(), Norms()
    with GradientEngine(model).observe(norms):
        losses(model, batch, 4).sum().backward()
    with GradientEngine(twin).observe(exact):
        losses(twin, batch, 4).sum().backward()
    scale = exact.total().max()
    assert ((norms.total() - exact.total()).abs() / scale).max() < 2e-2


def test_a_loss_scale_divides_out() -> None:
    model, batch, norms, scaled = tiny(dtype=torch.float32), padded(4), Norms(), Norms()
    engine = GradientEngine(model)
    with engine.observe(norms):
        losses(model, batch, 4).sum().backward()
    with engine.observe(scaled):
        (losses(model, batch, 4).sum() * 2.0**16).backward()
    torch.testing.assert_close(scaled.total() / 2.0**16, norms.total(), rtol=1e-6, atol=0)


def test_input_without_a_tensor_and_a_call_past_the_model() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    engine = GradientEngine(model)
    with pytest.raises(RuntimeError, match="call the model that was given"), engine.observe(Norms()):
        model[0](torch.randn(2, 3)).sum().backward()
    with engine.observe(Norms(), examples=2):
        model[0](torch.randn(2, 3)).sum().backward()


def score_own_rows(folder: str) -> None:
    rank = dist.get_rank()
    model = tiny(Switches(tied=True))
    direction = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    engine, wrapped = GradientEngine(model), DistributedDataParallel(model)
    for examples in (4, 5):  # the second splits unevenly
        batch = padded(examples)
        rows = torch.arange(examples).chunk(2)[rank]
        micro = {"ids": batch["ids"][rows], "document": batch["document"][rows]}
        micro["document"] = torch.where(micro["document"] < 0, -1, micro["document"] - rows[0])
        norms, dots = Norms(), Dots(direction)
        with engine.observe(norms, dots):
            losses(wrapped, micro, len(rows), divisor=20).sum().backward()
        torch.save((norms.total(), dots.total()), f"{folder}/{examples}-{rank}.pt")


@pytest.mark.usefixtures("two_processes")
def test_two_ranks_score_their_rows_as_one_process_does(tmp_path: Path) -> None:
    run_group(score_own_rows, tmp_path)
    model = tiny(Switches(tied=True))
    direction = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for examples in (4, 5):
        norms, dots = Norms(), Dots(direction)
        with GradientEngine(model).observe(norms, dots):
            losses(model, padded(examples), examples, divisor=20).sum().backward()
        parts = [torch.load(tmp_path / f"{examples}-{rank}.pt", weights_only=True) for rank in range(2)]
        for place, whole in enumerate((norms, dots)):
            both = torch.cat([part[place] for part in parts])
            torch.testing.assert_close(both, whole.total(), rtol=1e-10, atol=1e-14)


def refuse_shards() -> None:
    model = fully_shard(tiny(), mesh=dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),)))
    with pytest.raises(UnsupportedLayer, match="sharded"):
        GradientEngine(model)


@pytest.mark.usefixtures("two_processes")
def test_sharded_parameters_are_refused() -> None:
    run_group(refuse_shards)
