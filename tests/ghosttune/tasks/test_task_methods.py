"""Every method on every task: learns four rows, moves its own only, is read back and merged as it was, and measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_cases import CASES, Case

from ghosttune.errors import ConfigError
from ghosttune.models.loading import load_adapter, load_model
from ghosttune.models.merging import merged
from ghosttune.models.modules import head_modules
from ghosttune.models.prompting import prompt_length
from ghosttune.run.tables import read_table
from ghosttune.stages.prepare import Prepared, prepare
from ghosttune.training.guide import evaluating
from ghosttune.workflows.train import train

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

TASKS = [
    ("texts", "llama"),
    ("pairs", "bert"),
    ("tags", "bert"),
    ("questions", "distilbert"),
    ("rewriting", "t5"),
    ("regression", "bert"),
]
STEPS = 40
MORE_STEPS = dict.fromkeys(
    [("p_tuning", "rewriting"), ("prefix_projection", "rewriting"), ("p_tuning", "regression")], 120
)
"""(method, task) -> updates, where 40 do not learn four rows."""
REFUSED = {
    ("bitfit", "llama"): "this model has no biases",
    ("bitfit", "t5"): "this model has no biases",
    ("prefix_tuning", "distilbert"): "does not support past key values",
    ("prefix_projection", "distilbert"): "does not support past key values",
}
"""(method, family) -> why not."""
RATES = {
    ("layernorm", "regression"): 0.02,
    ("prompt_tuning", "regression"): 0.05,
    ("p_tuning", "regression"): 0.003,
    ("prefix_tuning", "regression"): 0.05,
}
"""(method, task) -> learning rate, where the method's own is too much for a random model."""


SHARE_LEFT = {"rewriting": 0.25}
"""Task -> of the loss, at the end; 0.15 for the others."""


def losses(model: Any, prepared: Prepared) -> torch.Tensor:
    """Of the dev rows, padded to one width."""
    with torch.no_grad(), evaluating(model):
        return prepared.task.example_loss(model, prepared.collator(prepared.dev.features))


def settings_of(case: Case, rate: float, steps: int) -> dict[str, Any]:
    """A run of a few steps with every instrument, on four rows of eight."""
    measured = {"norms__every": 20, "norms__effective": 20, "ledger__guide_every": 20}
    return {
        "method__type": case.method,
        **{f"method__{setting}": value for setting, value in case.settings.items()},
        "data__dev__fraction": 0.25,
        "train__max_steps": steps,
        "train__eval_steps": steps,
        "train__logging_steps": 1,
        "train__learning_rate": rate,
        "train__lr_scheduler_type": "constant",
        "evaluate__limit": 0,
        **{f"measure__{name}": value for name, value in measured.items()},
        "data__guide__rows": 2,
    }


ON_ONE = {"miss", "miss-bat", "hira", "shira", "gralora", "randlora", "c3a", "boft", "hra", "frod"}
"""Methods that differ from others here in the layers of PEFT alone: one task tells what each would."""
MATRIX = [(task, family, name) for task, family in TASKS for name in CASES if task == "texts" or name not in ON_ONE]
QUICK = {
    ("pairs", "dora-orthogonal"),
    ("texts", "prompt_tuning"),
    ("texts", "vera"),
    ("tags", "p_tuning"),
    ("tags", "full"),
    ("questions", "ia3"),
    ("questions", "prefix_tuning"),
    ("rewriting", "prefix_tuning"),
    ("regression", "bitfit"),
}
"""One cell for each task and each kind of method; the others are slow by their number."""


@pytest.mark.parametrize(
    ("task", "family", "name"),
    [pytest.param(*cell, marks=[] if (cell[0], cell[2]) in QUICK else pytest.mark.slow) for cell in MATRIX],
)
def test_a_method_on_a_task(task: str, family: str, name: str, task_config, tmp_path) -> None:
    case = CASES[name]
    rate, steps = RATES.get((name, task), case.learning_rate), MORE_STEPS.get((name, task), STEPS)
    config = task_config(task, family, 8, **settings_of(case, rate, steps))
    if why := REFUSED.get((name, family)):
        with pytest.raises(ConfigError, match=f"(?i){why}"):
            train(config, tmp_path / "run")
        return
    run = train(config, tmp_path / "run")
    log = [event["loss"] for event in run.events if event["event"] == "log"]
    prepared = prepare(config)
    kind = prepared.task.kind(prepared.encoder.tokenizer)
    assert min(log) < SHARE_LEFT.get(task, 0.15) * log[0]

    verdict, targets = run.record["verdict"], prepared.dev.targets
    base, again = (load_model(config.model, config.train.seed, kind).eval() for _ in range(2))
    tuned = load_adapter(again, run.folder.adapter)
    assert float(losses(tuned, prepared).sum()) / targets == pytest.approx(verdict["dev_loss"], rel=1e-4)
    assert float(losses(base, prepared).sum()) / targets == pytest.approx(verdict["dev_loss_base"], rel=1e-5)
    with tuned.disable_adapter():
        assert torch.equal(losses(tuned, prepared), losses(base, prepared))

    assert_only_its_own_moved(case, tuned, base, head_modules(base) if kind.new_head else [])
    assert all(row["steps_seen"] for row in run.values)
    assert run.record["ledger"]["guide_loss_path"] > 0
    assert {row["step"] for row in read_table(run.folder, "norms").to_pylist()} == set(range(1, steps, 20))
    if not prompt_length(tuned):
        expected = losses(tuned, prepared)
        torch.testing.assert_close(losses(merged(tuned), prepared), expected, rtol=1e-3, atol=1e-3)


def assert_only_its_own_moved(case: Case, model: Any, base: Any, heads: list[str]) -> None:
    """The base inside the tuned model is the untouched one, but for what a direct method trains."""
    before, inside = base.state_dict(), model.get_base_model().state_dict()
    found = {name.replace(".base_layer", "").replace(".original_module", ""): inside[name] for name in inside}
    moved = {name for name, tensor in before.items() if not torch.equal(found[name], tensor)}
    own = {
        "full": set(before),
        "bitfit": {name for name in before if name.endswith("bias") or name.split(".")[0] in heads},
    }
    assert moved <= own.get(case.method, set()) and bool(moved) == (case.method in own)
