"""Every setting does something: changing it changes rows, arguments, adapter, loading, answers or folders.

Nothing is trained. A setting without a case here fails by name, and so does one whose case changes nothing: a key that
does not work has no place in the schema. The copy of a setting in config.yaml does not count.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from small_llama import small_llama

from ghosttune.config.loading import load_config
from ghosttune.config.resolve import Facts, resolve_sources, resolve_steps
from ghosttune.config.schema import KINDS, RunConfig, leaf_fields
from ghosttune.config.setting import MethodSettings, TaskSettings, setting
from ghosttune.errors import DataError
from ghosttune.registry import METHODS, STRATEGIES, TASKS

# PEFT 0.21 asks Transformers 5.23 by a name that Transformers is about to drop
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

# --- the world: two small models with tokenizers of their own, and a few files of rows ---


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    _model(folder / "model", "the quick brown fox asks what colour the answer has", 280)
    _model(folder / "other", "entirely different words merge into other tokens here", 290)
    _model(folder / "biased", "the quick brown fox asks what colour the answer has", 280, attention_bias=True)
    rows = [
        {
            "prompt": f"what colour is number {n % 20} " + "please " * (n % 7),
            "completion": f"the answer is {n}",
            "question": f"which brown fox is number {n}",
            "text": f"User: number {n}\nAssistant: fox {n}",
        }
        for n in range(40)
    ]
    _write(folder / "rows.jsonl", rows)
    _write(folder / "fewer.jsonl", rows[:30])
    _write(folder / "named.jsonl", [{**row, "id": f"row {n}"} for n, row in enumerate(rows)])
    others = [{**row, "prompt": f"another {row['prompt']}", "id": f"row {n}"} for n, row in enumerate(rows)]
    _write(folder / "others.jsonl", others)
    for name, sign in (("a", 1), ("b", -1)):
        _write(folder / f"scores-{name}.jsonl", [{"example_id": f"row {n}", "score": sign * n} for n in range(40)])
        losses = [{"example_id": f"{source}/row {n}", "score": sign} for source in ("one", "other") for n in range(40)]
        _write(folder / f"losses-{name}.jsonl", losses)
    (folder / "gone.txt").write_text("row 3\nrow 8\n")
    (folder / "others.txt").write_text("row 4\nrow 9\n")
    _write(folder / "kept.jsonl", [{"example_id": f"row {n}"} for n in range(20)])
    _write(folder / "patch.jsonl", [{"example_id": f"row {n}", "drop": True} for n in range(20)])
    labels = ["yes" if len(row["prompt"]) % 2 else "no" for row in rows]
    _write(
        folder / "labelled.jsonl",
        [{"text": r["prompt"], "label": label} for r, label in zip(rows, labels, strict=True)],
    )
    words = [row["prompt"].split() for row in rows]
    _write(folder / "tagged.jsonl", [{"tokens": w, "tags": ["yes" if len(x) > 3 else "no" for x in w]} for w in words])
    answers = {"text": ["brown"], "answer_start": [40]}
    texts = [f"{n:040}brown fox " + "please " * 9 for n in range(40)]
    _write(folder / "asked.jsonl", [{"question": "which fox", "context": text, "answers": answers} for text in texts])
    _write(folder / "marked.jsonl", [{"text": row["text"]} for row in rows])
    _write(folder / "dev.jsonl", [{**row, "prompt": f"another {row['prompt']}"} for row in rows[:5]])
    _write(folder / "guided.jsonl", [{**row, "prompt": f"a third {row['prompt']}"} for row in rows[:5]])
    splits = ["dev" if n % 20 == 0 else "test" if n % 20 == 1 else "train" for n in range(40)]
    judges = ["guide" if n % 20 == 3 else split for n, split in enumerate(splits)]
    _write(folder / "guide.jsonl", [{**row, "split": split} for row, split in zip(rows, judges, strict=True)])
    _write(folder / "split.jsonl", [{**row, "split": split} for row, split in zip(rows, splits, strict=True)])
    _write(folder / "queries.jsonl", [{**row, "completion": "SELECT a FROM table", "table_id": "1"} for row in rows])
    for name, value in (("own", "x"), ("other", "y")):
        table = {"id": "1", "header": ["a", "b"], "types": ["text", "text"], "rows": [["x", value]]}
        _write(folder / f"{name}.tables.jsonl", [table])
    (folder / "wordnet").mkdir()
    (folder / "wordnet" / "own_synonyms.tsv").write_text("1-n\tanswer reply\n")
    (folder / "e2e").mkdir()
    for name in ("trainset", "devset", "testset_w_refs"):
        lines = [f'"name[{name} {n}], food[fox]",{name} {n} serves a fox' for n in range(12)]
        (folder / "e2e" / f"{name}.csv").write_text("\n".join(["mr,ref", *lines]))
    return folder


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _model(folder: Path, text: str, vocabulary: int, **shape: Any) -> None:
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [text] * 3, vocabulary, min_frequency=2, special_tokens=["<pad>", "<eos>"], show_progress=False
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="<eos>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(vocabulary)
    shape |= {"num_hidden_layers": 1, "max_position_embeddings": 512, "eos_token_id": 1, "pad_token_id": 0}
    small_llama(vocabulary, hidden_size=32, intermediate_size=64, **shape).save_pretrained(folder)


def configured(world: Path, settings: dict[str, Any]) -> RunConfig:
    """The base configuration with these settings; `@x` stands for the world's file x."""
    base = {
        "model.name": "@model",
        "model.device": "cpu",
        "data.train.path": "@rows.jsonl",
        "data.template": "plain",
        "train.max_steps": 60,
        "run.root": "@runs",
    }
    tree: dict[str, Any] = {}
    for path, value in (base | settings).items():
        *groups, last = path.split(".")
        level = tree
        for group in groups:
            level = level.setdefault(group, {})
        level[last] = _placed(world, value)
    return load_config(tree)


def _placed(world: Path, value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _placed(world, inner) for name, inner in value.items()}
    return str(world / value[1:]) if isinstance(value, str) and value.startswith("@") else value


# --- what can be observed without training ---

Observed = Callable[[RunConfig, Path, pytest.MonkeyPatch], Any]


SOURCES = {
    "data.train.path": None,
    "data.train.sources": {"one": {"path": "@rows.jsonl"}, "other": {"path": "@dev.jsonl"}},
    "data.dev.fraction": 0.2,
}


def shares(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """How many rows of each source of a mixture an epoch has."""
    from ghosttune.stages.prepare import prepare

    return {name: counts["epoch"] for name, counts in prepare(config).sources.items()}


def rows(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """Ids, tokens and targets of all splits; or why there are none."""
    from ghosttune.stages.prepare import prepare

    try:
        prepared = prepare(config)
    except DataError as error:
        return f"refused: {error}"
    return [
        [
            {name: getattr(value, "tolist", lambda v=value: v)() for name, value in vars(row).items()}
            for row in split.features
        ]
        for split in (prepared.train, prepared.dev, prepared.guide)
    ]


def arguments(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """What transformers.Trainer is told."""
    from ghosttune.training.arguments import training_arguments

    config = resolve_steps(resolve_sources(config, Facts()), train_rows=100)
    return training_arguments(config, str(folder), resuming=False).to_dict()


def device(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """Where the model goes, on a machine with two CUDA devices."""
    from ghosttune.models.loading import device_of

    return str(device_of(resolve_sources(config, Facts(cuda_devices=2)).model))


def loading(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """Which loader of transformers is called for the model, and how."""
    import transformers

    from ghosttune.models import loading

    calls: list[Any] = []
    patch.setattr(loading, "_is_cached", lambda name, revision: True)
    patch.setattr(loading, "require_attention", lambda settings, model: None)
    patch.setattr(loading, "_require_causal", lambda settings, model: None)
    patch.setattr(loading, "prepared_for_training", lambda model: model)

    def recorder(kind: str) -> Callable[..., Any]:
        def record(*positional: Any, **named: Any) -> Any:
            calls.append((kind, [str(value) for value in positional], named))
            model = SimpleNamespace(requires_grad_=lambda on: calls)
            return (model, {"missing_keys": [], "mismatched_keys": []}) if "output_loading_info" in named else model

        return record

    for loader, methods in (
        ("AutoModelForCausalLM", ("from_pretrained", "from_config")),
        ("AutoConfig", ("from_pretrained",)),
    ):
        for method in methods:
            patch.setattr(getattr(transformers, loader), method, recorder(f"{loader}.{method}"))
    loading.load_model(config.model, config.train.seed)
    return [(kind, named) for kind, _, named in calls], calls[0][1]


def shared(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """How many blocks each of several processes keeps a part of."""
    from ghosttune.stages import model
    from ghosttune.stages.prepare import prepare

    counts: list[int] = []
    patch.setattr(model, "share_out", lambda model, blocks, device: counts.append(len(blocks)))
    model.adapted_model(prepare(config))
    return counts


def adapter(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """PEFT's configuration, the adapted modules and their first weights."""
    from ghosttune.models.loading import add_adapter, load_model

    model = add_adapter(load_model(config.model, config.train.seed), config.method, config.train.seed)
    configuration = getattr(model, "peft_config", {}).get("default")
    settings = {name: str(value) for name, value in configuration.to_dict().items()} if configuration else {}
    settings["target_modules"] = str(sorted(getattr(configuration, "target_modules", None) or []))
    settings["feedforward_modules"] = str(sorted(getattr(configuration, "feedforward_modules", None) or []))
    weights = {name: p.tolist() for name, p in model.named_parameters() if p.requires_grad}
    return (
        settings,
        weights,
        [str(module) for name, module in model.named_modules() if name.endswith("dropout.default")],
    )


def first_factors(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """What training rows make of A before the first update."""
    from ghosttune.stages.model import adapted_model, initialise
    from ghosttune.stages.prepare import prepare

    prepared = prepare(config)
    adapted = adapted_model(prepared)
    initialise(prepared, adapted)
    return {name: p.tolist() for name, p in adapted.model.named_parameters() if "lora_A" in name}


def stop(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """The evaluation after which training stops, for losses that fall a little and then rise."""
    from ghosttune.run.directory import RunDir
    from ghosttune.training.watching import Watch

    watch = Watch(RunDir(folder), config.train, lambda event: None)
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    for step, loss in enumerate([3.0, 2.0, 1.9, 1.8, 1.7, 1.9, 1.9, 1.9, 1.9]):
        watch.on_evaluate(None, SimpleNamespace(global_step=step), control, {"eval_loss": loss})
        if control.should_training_stop:
            return step
    return None


def kept(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """The checkpoints that are left after five were written."""
    from ghosttune.run.directory import RunDir
    from ghosttune.training import trainer

    run = RunDir(folder)
    patch.setattr(trainer.checkpoints, "write_checkpoint", lambda path, *rest: path.mkdir(parents=True))
    patch.setattr(trainer, "_state_as_json", lambda state: "")
    nothing = SimpleNamespace(
        optimizer=None,
        eval=lambda: None,
        state_dict=dict,
        counters=dict,
        tensors=dict,
        flush=lambda: None,
        best_step=None,
    )
    for step in range(1, 6):
        trainer.RunTrainer._save_checkpoint(
            SimpleNamespace(  # type: ignore[arg-type]
                state=SimpleNamespace(global_step=step),
                run=run,
                config=config,
                model=None,
                optimizer=nothing,
                lr_scheduler=nothing,
                watch=nothing,
                measurement=nothing,
                phasing=None,
            ),
            None,
        )
    return run.checkpoint_steps()


def answers(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """How many dev prompts are answered at the end, how long an answer may be, and every number made of them."""
    from ghosttune.inference.generating import Answer
    from ghosttune.judging import evaluate, forgetting
    from ghosttune.run.directory import RunDir
    from ghosttune.stages.prepare import prepare

    asked: list[Any] = []

    class FakePipeline:
        engine = "transformers"

        def __init__(self, model: Any, encoder: Any, max_new_tokens: int, task: Any):
            self.model, self.encoder, self.task, self.max_new_tokens = model, encoder, task, max_new_tokens
            asked.append(max_new_tokens)

        def room(self, wanted: int) -> int:
            return 0

        def encoder_of(self, turns: Any) -> Any:
            return self.encoder

        def generate(self, prompts: Any, adapter: bool = True) -> list[Answer]:
            asked.append(len(prompts))
            return [Answer("SELECT b FROM table\nthe reply is 1", 1, True) for _ in prompts]

    patch.setattr(evaluate, "Pipeline", FakePipeline)
    patch.setattr(forgetting, "nats", lambda model, blocks, adapter: np.array([row.targets for row in blocks]))
    run = RunDir(folder)
    evaluate.evaluate_dev_rows(run, prepare(config), None, lambda event: None)
    return asked, json.loads(run.evaluation.read_text())


def sampled(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """Which dev prompts are answered at every evaluation."""
    from ghosttune.judging import sampled
    from ghosttune.stages.prepare import prepare

    patch.setattr(sampled, "Pipeline", lambda *_: SimpleNamespace(prompt_ids=lambda prompt: prompt))
    found = sampled.samples_of(prepare(config), None)
    return found and found.asked


def measured(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """The measurements of four steps: which files there are and what the tables hold."""
    from ghosttune.run.tables import read_table
    from ghosttune.workflows.train import train

    run = train(config, folder / "run").folder
    names = sorted(path.stem for path in run.tables.glob("*.parquet")) if run.tables.is_dir() else []
    files = sorted(path.name for path in run.path.glob("gradient_analysis.*"))
    return {"files": files} | {name: read_table(run, name).to_pydict() for name in names}


def padding(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """The share of padding, where sequences may be long."""
    from ghosttune.training import packed
    from ghosttune.workflows.train import train

    patch.setitem(packed.WIDTHS_REACHED, "sdpa", 1e4)
    return train(config, folder / "run").record["padding_share"]


def phases(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """Which updates train what, and the learning rate of each."""
    from ghosttune.schedules.rates import phase_rates

    schedule = STRATEGIES[config.phases.strategy].build(config.phases, config.train.max_steps)
    if schedule is None:
        return None
    rates = [phase_rates(schedule, n, lambda done: 1 - done / 60, 5, n > 0) for n in range(len(schedule.phases))]
    return [(phase.start, phase.end, str(phase.selection), phase.choice) for phase in schedule.phases], rates


def optimizer_groups(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """The learning rates of a run's optimizer."""
    from ghosttune.training import checkpoints
    from ghosttune.workflows.train import train

    checkpoint = train(config, folder / "run").folder.checkpoint(4)
    return [group["initial_lr"] for group in json.loads((checkpoint / checkpoints.STATE).read_text())["groups"]]


def tracked(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """Which of Transformers' integrations are told."""
    from ghosttune.training.tracking import Trackers

    nothing: Any = SimpleNamespace(instruments=[])
    return [tracker.integration for tracker in Trackers(config.run.trackers, nothing, print).kinds.values()]


def alerts(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """What is sent of a run whose dev loss stops falling and whose verdict is worse."""
    from ghosttune.training import alerting

    sent: list[Any] = []
    patch.setattr(alerting, "_post", lambda *message: sent.append(("posted", *message)))
    patch.setattr(alerting, "_run", lambda *message: sent.append(("run", *message)))
    watching = alerting.Alerts(config.alerts, "run", lambda event: None)
    for step in range(1, 6):
        watching.hear({"event": "eval", "split": "dev", "step": step, "loss": 1.0})
    verdict = {"verdict": "worse", "dev_loss_base": 1.0, "dev_loss": 2.0, "best_step": 1}
    watching.hear({"event": "end", "verdict": verdict})
    return sent


def run_folder(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """Where a run without --out goes."""
    from ghosttune.stages.prepare import default_run_folder

    return default_run_folder(config, "20260101-000000")


def task(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """The class that computes the loss."""
    return type(TASKS[config.task.type].build(config.task))


def spans(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """The span that is best when the first and the last token of a text of nine are the most likely ends."""
    import torch

    from ghosttune.tasks.extraction import best_spans

    logits = torch.zeros(1, 9, 2)
    logits[0, 0, 0] = logits[0, 8, 1] = 5.0
    return best_spans(logits, torch.ones(1, 9, dtype=torch.bool), config.task.max_answer_length)  # type: ignore[attr-defined]


def preference_losses(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """The loss of two answers of which all is known; of wanted and unwanted ones for `kto`."""
    import torch

    from ghosttune.tasks.losses import Said, kto

    task = TASKS[config.task.type].build(config.task)
    said = [
        Said(*(torch.tensor([number]) for number in numbers))
        for numbers in ((-3.0, 4, -4.0, -0.9), (-5.0, 3, -4.5, -1.0))
    ]
    if task.is_kto:
        return [
            kto(said[0], torch.tensor([wanted]), torch.tensor(0.1), task.settings).item() for wanted in (True, False)
        ]
    return task.loss.loss(*said, task.settings).item()


def drawn_answers(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """The answers to two rows, their loss beside other policies', what a right number earns, and which rows train."""
    from ghosttune.run.directory import RunDir
    from ghosttune.stages.model import adapted_model
    from ghosttune.stages.prepare import prepare
    from ghosttune.stages.rewarding import rollouts_of
    from ghosttune.training.order import rows_of_steps
    from ghosttune.training.rollouts import Drawn

    prepared = prepare(config)
    model = adapted_model(prepared).model
    rollouts = rollouts_of(RunDir(folder / "run"), prepared, model)
    assert rollouts is not None
    (batch,) = rollouts.batches(1, [[0, 1]])
    far = {name: batch[name] - 0.5 for name in ("drawn", "base") if name in batch}
    batch |= far | {"advantage": batch["owner"] + batch["number"] + 1.0}
    losses = prepared.task.example_loss(model, batch).tolist()
    right = prepared.train_records[0].reference
    earned = rollouts.answers.rewards([0], [Drawn([5], f"it is {right.split()[-1]}", True)])  # type: ignore[union-attr]
    steps = list(rows_of_steps(prepared.order(), 2, 1, 4))
    return batch["input_ids"].tolist(), losses, earned.tolist(), steps


def ordered(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """Which rows are shown, and so trained, first."""
    from ghosttune.workflows.preview import preview

    return [row.example_id for row in preview(config, 10)]


def forgotten(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """What is trained of two rows of which one is forgotten, and at which loss of its the run ends."""
    import torch

    from ghosttune.run.directory import RunDir
    from ghosttune.training.unlearning import Unlearning
    from ghosttune.training.watching import Watch

    unlearning = Unlearning(config.forget, [SimpleNamespace(targets=1)] * 2, {1: 3.0})  # type: ignore[list-item]
    batch = {"forgets": torch.tensor([False, True]), "start": torch.tensor([0.0, 3.0])}
    watch = Watch(RunDir(folder), config.train, lambda event: None)
    watch.until = config.forget.until
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    watch.on_evaluate(None, SimpleNamespace(global_step=1), control, {"eval_loss": 1.0, "eval_forgotten": 2.0})
    return unlearning.loss(torch.tensor([2.0, 4.0]), batch).tolist(), control.should_training_stop


def started(config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """The adapter that a run begins with that forgets rows of another, which is trained here."""
    from ghosttune.stages.model import adapted_model
    from ghosttune.stages.prepare import prepare
    from ghosttune.stages.unlearning import start_from
    from ghosttune.workflows.train import train

    source = Path(str(config.forget.run))
    if not source.exists():
        other = "train.seed=1" if source.name == "other-run" else "train.seed=0"
        brief = [f"{name}={value}" for name, value in BRIEF.items() if not name.startswith("data.guide")]
        given = config.model_dump() | {"forget": {}}
        train(load_config(given, overrides=[*brief, other, "train.max_steps=2", "measure=null"]), source)
    model = adapted_model(prepare(config)).model
    start_from(config, model)
    return {name: p.tolist() for name, p in model.named_parameters() if "lora_B" in name}


# --- one case per setting ---


@dataclass(frozen=True)
class Case:
    """Where a changed value shows."""

    observed: Observed
    value: Any
    beside: dict[str, Any] = field(default_factory=dict)
    """Settings of both configurations, where the base ones leave no room for a difference."""


BRIEF = {
    "train.max_steps": 4,
    "train.per_device_train_batch_size": 4,
    "train.warmup_steps": 1,
    "train.learning_rate": 0.01,
    "data.guide.rows": 4,
    "evaluate.limit": 0,
}

FILES = {"data.dev.path": "@dev.jsonl", "data.guide.path": "@guided.jsonl"}

LEARNT = BRIEF | SOURCES | {"data.mixture.by": "guide", "data.mixture.every": 1, "measure.ledger.guide_every": 1}
REFERRED = LEARNT | {
    "data.mixture.by": "doremi",
    "data.mixture.reference_losses": "@losses-a.jsonl",
    "data.train.sources": {"one": {"path": "@named.jsonl"}, "other": {"path": "@others.jsonl"}},
}

LINEAR = {"target_modules": ["q_proj"]}
METHOD_VALUES: dict[str, dict[str, Any]] = {
    "lora": {},
    "layernorm": {},
    "full": {},
    "adalora": LINEAR
    | {"init_r": 9, "target_r": 3, "lora_alpha": 2.0, "lora_dropout": 0.5, "tinit": 3, "tfinal": 3, "deltaT": 2}
    | {"orth_reg_weight": 0.1},
    "vera": LINEAR | {"r": 9, "vera_dropout": 0.5, "d_initial": 0.5},
    "loha": LINEAR | {"r": 3, "alpha": 2, "module_dropout": 0.5},
    "lokr": LINEAR | {"r": 3, "alpha": 2, "module_dropout": 0.5, "decompose_both": True, "decompose_factor": 4},
    "oft": LINEAR | {"oft_block_size": 8, "module_dropout": 0.5},
    "ia3": LINEAR,
    "miss": LINEAR | {"r": 8, "miss_dropout": 0.5, "init_weights": "bat"},
    "hira": LINEAR | {"r": 3, "hira_dropout": 0.5},
    "shira": LINEAR | {"r": 3},
    "gralora": LINEAR | {"r": 4, "hybrid_r": 2, "alpha": 8, "gralora_k": 4, "gralora_dropout": 0.5},
    "randlora": LINEAR | {"r": 3, "randlora_alpha": 20, "randlora_dropout": 0.5},
    "c3a": LINEAR | {"block_size": 8},
    "boft": LINEAR | {"boft_block_size": 8, "boft_n_butterfly_factor": 2, "boft_dropout": 0.5},
    "hra": LINEAR | {"r": 4, "apply_GS": True},
    "frod": LINEAR | {"sparse_rate": 0.3, "regularization_alpha": 0.1, "frod_dropout": 0.5},
    "prompt_tuning": {"num_virtual_tokens": 3, "prompt_tuning_init": "random"},
    "p_tuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 9},
    "prefix_tuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 9},
}
"""Method -> a second value of each of its settings, which the adapter itself shows."""
TABLES = {
    "data.train.path": "@queries.jsonl",
    "evaluate.metrics": ["sql_execution"],
    "evaluate.tables": "@own.tables.jsonl",
}

SHORT = {"data.max_length": 56, "data.truncated_share": 1.0}

STRATEGY_CASES: dict[str, dict[str, Any]] = {
    "none": {},
    "plan": {"plan": "mlp@0-20 > both@20-"},
    **{name: {"boundaries": [9, 30]} for name in ("attn->mlp->both", "both->mlp->attn", "both->mlp->both")},
    "early->late": {"boundaries": [9]},
    "cycle": {"order": ["mlp", "q"], "period": 7},
    "lisa": {"layers": 3, "period": 7},
    "top-down": {"parts": 2},
    "guided": {"order": ["mlp", "q"], "signal": "ledger", "period": 30},
}
PARTS = {"phases.plan": "mlp@0-20 > both@20-"}
SHARED = {"optimizer_state": "keep", "learning_rate_mass": "equal"}

PHASE_CASES = (
    {
        f"phases({kind}).{name}": Case(phases, value, {"phases.strategy": kind})
        for kind, own in STRATEGY_CASES.items()
        for name, value in own.items()
    }
    | {
        f"phases({kind}).{name}": Case(phases, value, {"phases.strategy": kind} | (PARTS if kind == "plan" else {}))
        for kind in sorted(STRATEGY_CASES.keys() - {"none"})
        for name, value in SHARED.items()
    }
    | {
        f"phases({kind}).strategy": Case(
            phases, "top-down" if kind != "top-down" else "none", {"phases.strategy": kind}
        )
        for kind in STRATEGY_CASES
    }
)


def of_task(kind: str, path: str, **others: Any) -> dict[str, Any]:
    return {"task.type": kind, "data.train.path": path, "data.template": "auto", **others}


SCORED = {"train.order": "value", "train.order_scores": "@scores-a.jsonl", "data.train.path": "@named.jsonl"}

GONE = {
    "forget.run": "@run",
    "forget.rows": "@gone.txt",
    "data.train.path": "@named.jsonl",
    "data.dev.path": "@dev.jsonl",
    "measure.ledger": None,
}

LABELLED = of_task("sequence_classification", "@labelled.jsonl")
TAGGED = of_task("token_classification", "@tagged.jsonl")
ASKED = of_task("question_answering", "@asked.jsonl") | {"data.max_length": 60, "task.stride": 8}
REWRITTEN = of_task("seq2seq_lm", "@rows.jsonl")
GRPO = {"task.type": "grpo", "train.per_device_train_batch_size": 2}

CASES: dict[str, Case] = {
    "model.name": Case(rows, "@other"),
    "model.init": Case(loading, "random"),
    "model.revision": Case(loading, "v2", {"model.name": "org/model"}),
    "model.dtype": Case(loading, "bfloat16"),
    "model.quantization": Case(loading, "nf4"),
    "model.device": Case(device, "cuda:1"),
    "model.attention": Case(loading, "eager"),
    "model.chat_template": Case(
        rows, "{{ eos_token.join(messages | map(attribute='content')) }}{{ eos_token }}", {"data.template": "auto"}
    ),
    "model.trust_remote_code": Case(loading, True),
    **{f"method({name}).type": Case(adapter, "another", {"method.type": name}) for name in METHOD_VALUES},
    "method(bitfit).type": Case(adapter, "another", {"method.type": "bitfit", "model.name": "@biased"}),
    **{
        f"method({name}).{changed}": Case(adapter, value, {"method.type": name})
        for name, values in METHOD_VALUES.items()
        for changed, value in values.items()
    },
    "method(lora).r": Case(adapter, 4),
    "method(lora).lora_alpha": Case(adapter, 8),
    "method(lora).lora_dropout": Case(adapter, 0.5),
    "method(lora).parameter_budget": Case(adapter, 3000),
    "method(lora).trainable_token_indices": Case(adapter, [2]),
    "method(lora).target_modules": Case(adapter, ["q_proj"]),
    "method(lora).use_rslora": Case(adapter, True),
    "method(lora).use_dora": Case(adapter, True),
    "method(lora).init_lora_weights": Case(adapter, "pissa"),
    "method(lora).init_rows": Case(first_factors, 3, {"method.init_lora_weights": "eva"}),
    "method(lora).loraplus_lr_ratio": Case(
        optimizer_groups, 4.0, BRIEF | {"measure.ledger": None, "data.guide.rows": None}
    ),
    "task(causal_lm).type": Case(task, "another"),
    "task(sequence_classification).type": Case(task, "another", LABELLED),
    "task(sequence_classification).labels": Case(rows, ["yes", "no"], LABELLED),
    "task(token_classification).type": Case(task, "another", TAGGED),
    "task(token_classification).labels": Case(rows, ["yes", "no"], TAGGED),
    "task(question_answering).type": Case(task, "another", {"task.type": "question_answering"}),
    "task(question_answering).stride": Case(rows, 12, ASKED),
    "task(question_answering).max_answer_length": Case(spans, 3, {"task.type": "question_answering"}),
    "task(seq2seq_lm).type": Case(task, "another", {"task.type": "seq2seq_lm"}),
    "task(seq2seq_lm).max_target_length": Case(rows, 4, REWRITTEN),
    "task(regression).type": Case(task, "another", {"task.type": "regression"}),
    "task(reward).type": Case(task, "another", {"task.type": "reward"}),
    "task(preference).type": Case(task, "another", {"task.type": "preference"}),
    "task(preference).loss": Case(preference_losses, "ipo", {"task.type": "preference"}),
    "task(preference).beta": Case(preference_losses, 0.7, {"task.type": "preference"}),
    **{
        f"task(preference).{name}": Case(preference_losses, 0.3, {"task.type": "preference", "task.loss": loss})
        for loss, names in {
            "robust_dpo": ["label_smoothing"],
            "simpo": ["simpo_gamma"],
            "cpo": ["cpo_alpha"],
            "kto": ["desirable_weight", "undesirable_weight"],
        }.items()
        for name in names
    },
    "task(grpo).type": Case(task, "another", GRPO),
    "task(grpo).rewards": Case(drawn_answers, ["number_match"], GRPO),
    "task(grpo).completions": Case(drawn_answers, 3, GRPO),
    "task(grpo).max_new_tokens": Case(drawn_answers, 3, GRPO),
    "task(grpo).temperature": Case(drawn_answers, 0.5, GRPO),
    "task(grpo).updates": Case(drawn_answers, 2, GRPO),
    "task(grpo).epsilon": Case(drawn_answers, 0.1, GRPO | {"task.updates": 2}),
    "task(grpo).beta": Case(drawn_answers, 0.2, GRPO),
    "task(grpo).loss": Case(drawn_answers, "dr_grpo", GRPO),
    "data.train.name": Case(rows, "e2e_nlg", {"data.train.path": "@e2e"}),
    "data.train.path": Case(rows, "@fewer.jsonl"),
    "data.train.format": Case(rows, "text"),
    "data.train.columns": Case(rows, {"prompt": "question"}),
    "data.train.limit": Case(rows, 7),
    "data.train.keep": Case(rows, "@kept.jsonl", {"data.train.path": "@named.jsonl"}),
    "data.train.patch": Case(rows, "@patch.jsonl", {"data.train.path": "@named.jsonl"}),
    "data.train.sources": Case(rows, {"two": {"path": "@rows.jsonl"}}, SOURCES),
    "data.train.temperature": Case(shares, 9.0, SOURCES),
    "data.train.streaming": Case(rows, True, FILES),
    "data.train.shuffle_buffer": Case(rows, 5, FILES | {"data.train.streaming": True}),
    "data.mixture.by": Case(measured, "odm", LEARNT | {"data.mixture.by": "guide"}),
    "data.mixture.every": Case(measured, 3, LEARNT),
    "data.mixture.floor": Case(measured, 0.9, LEARNT),
    "data.mixture.reference_losses": Case(measured, "@losses-b.jsonl", REFERRED),
    "data.dev.sources": Case(rows, {"set": {"path": "@dev.jsonl"}}),
    "data.dev.fraction": Case(rows, 0.4),
    "data.dev.split": Case(rows, "test", {"data.train.path": "@split.jsonl"}),
    "data.dev.path": Case(rows, "@dev.jsonl"),
    "data.dev.limit": Case(rows, 1, {"data.dev.fraction": 0.3}),
    "data.guide.fraction": Case(rows, 0.4),
    "data.guide.split": Case(rows, "dev", {"data.train.path": "@guide.jsonl", "data.dev.fraction": 0.3}),
    "data.guide.rows": Case(rows, 9),
    "data.guide.path": Case(rows, "@guided.jsonl"),
    "data.online_selection.by": Case(measured, "random", BRIEF | {"data.online_selection.by": "loss"}),
    "data.online_selection.candidates": Case(measured, 3, BRIEF | {"data.online_selection.by": "random"}),
    "data.online_selection.lowest": Case(measured, True, BRIEF | {"data.online_selection.by": "loss"}),
    "data.template": Case(rows, "turns"),
    "data.max_length": Case(rows, 60, SHORT),
    "data.loss_on": Case(rows, "all"),
    "data.truncated_share": Case(rows, 0.0, SHORT),
    "train.max_steps": Case(arguments, 61),
    "train.num_train_epochs": Case(arguments, 2.0, {"train.max_steps": None, "train.num_train_epochs": 1.0}),
    "train.per_device_train_batch_size": Case(arguments, 3),
    "train.per_device_eval_batch_size": Case(arguments, 3),
    "train.gradient_accumulation_steps": Case(arguments, 3),
    "train.group_by_length": Case(measured, True, BRIEF),
    "train.order": Case(ordered, "length"),
    "train.order_descending": Case(ordered, True, {"train.order": "length"}),
    "train.order_scores": Case(ordered, "@scores-b.jsonl", SCORED),
    "train.packing": Case(padding, True, BRIEF | {"measure.ledger": None, "data.guide.rows": None}),
    "train.learning_rate": Case(arguments, 1e-3),
    "train.optim": Case(arguments, "adamw_torch"),
    "train.lr_scheduler_type": Case(arguments, "linear"),
    "train.warmup_steps": Case(arguments, 3),
    "train.weight_decay": Case(arguments, 0.1),
    "train.adam_beta1": Case(arguments, 0.8),
    "train.adam_beta2": Case(arguments, 0.8),
    "train.adam_epsilon": Case(arguments, 1e-6),
    "train.max_grad_norm": Case(arguments, 0.5),
    "train.seed": Case(rows, 7),
    "train.logging_steps": Case(arguments, 11),
    "train.eval_steps": Case(arguments, 11),
    "train.save_steps": Case(arguments, 11),
    "train.save_total_limit": Case(kept, 4),
    "train.early_stopping_patience": Case(stop, 2),
    "train.early_stopping_threshold": Case(stop, 0.5, {"train.early_stopping_patience": 3}),
    "train.activation_checkpointing": Case(arguments, True),
    "train.fsdp": Case(shared, True, {"measure.norms.effective": None}),
    **PHASE_CASES,
    "forget.run": Case(started, "@other-run", GONE),
    "forget.rows": Case(rows, "@others.txt", GONE),
    "forget.loss": Case(forgotten, "gradient_ascent", GONE),
    "forget.beta": Case(forgotten, 0.7, GONE),
    "forget.retain": Case(rows, "@others.txt", GONE),
    "forget.retain_rows": Case(rows, 3, GONE),
    "forget.retain_weight": Case(forgotten, 0.5, GONE),
    "forget.until": Case(forgotten, 1.5, GONE),
    "measure.norms.every": Case(measured, 2, BRIEF),
    "measure.norms.layers": Case(measured, False, BRIEF),
    "measure.norms.effective": Case(measured, 2, BRIEF),
    "measure.ledger.guide_every": Case(measured, 2, BRIEF),
    "measure.ledger.guide_subset": Case(measured, 4, BRIEF | {"data.guide.rows": 8}),
    "measure.ledger.values": Case(measured, "sgd", BRIEF),
    "measure.unsupported": Case(
        measured, "leave_out", BRIEF | {"method.type": "lokr", "method.r": 2, "method.target_modules": ["q_proj"]}
    ),
    "evaluate.metrics": Case(answers, ["rouge_1"]),
    "evaluate.synonyms": Case(answers, "@wordnet", {"evaluate.metrics": ["meteor"]}),
    "evaluate.tables": Case(answers, "@other.tables.jsonl", TABLES),
    "evaluate.general_text": Case(answers, "@dev.jsonl"),
    "evaluate.limit": Case(answers, 2),
    "evaluate.max_new_tokens": Case(answers, 9),
    "evaluate.samples": Case(sampled, 2),
    "evaluate.shots": Case(answers, 2),
    "run.name": Case(run_folder, "mine"),
    "run.root": Case(run_folder, "@elsewhere"),
    "run.trackers": Case(tracked, ["tensorboard"]),
    "alerts.on": Case(alerts, ["worse"], {"alerts.on": ["plateau"], "alerts.command": "true"}),
    "alerts.webhook": Case(alerts, "ALERTS_GO_TO", {"alerts.on": ["worse"], "alerts.command": "true"}),
    "alerts.command": Case(alerts, "true", {"alerts.on": ["worse"], "alerts.webhook": "ALERTS_GO_TO"}),
    "alerts.patience": Case(alerts, 1, {"alerts.on": ["plateau"], "alerts.command": "true"}),
}


def every_setting() -> Iterator[str]:
    """The settings of the common sections and of every method and task: `train.seed`, `method(lora).r`."""
    yield from (path for path, _ in leaf_fields() if path.partition(".")[0] not in KINDS)
    for section, kinds in KINDS.items():
        for entry in kinds.registry:
            paths = [path for path, _ in leaf_fields({section: entry.name}) if path.startswith(f"{section}.")]
            yield from (path.replace(section, f"{section}({entry.name})", 1) for path in paths)


def assert_changes(name: str, case: Case, world: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """The case shows a difference, and the same configuration twice does not."""
    section, _, rest = name.partition(".")
    path = f"{section.partition('(')[0]}.{rest}"
    first, again = _before(case, world, folder, patch)
    assert first == again, f"{name}: what is compared changes by itself"
    changed = _seen(case.observed, case.beside | {path: case.value}, world, folder / "changed", patch)
    assert first != changed, f"{name} changes nothing"


_BEFORE: dict[tuple[Observed, str], tuple[Any, Any]] = {}


def _before(case: Case, world: Path, folder: Path, patch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """What is observed without the change, twice; once for all cases that observe the same."""
    key = case.observed, json.dumps(case.beside, sort_keys=True)
    if key not in _BEFORE:
        one, two = (_seen(case.observed, case.beside, world, folder / name, patch) for name in ("first", "again"))
        _BEFORE[key] = one, two
    return _BEFORE[key]


def _seen(observed: Observed, settings: dict[str, Any], world: Path, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    own = folder / "x"
    own.mkdir(parents=True)
    with patch.context() as local:
        return _without(observed(configured(world, settings), own, local), str(own))


def _without(observed: Any, folder: str) -> Any:
    """What was observed, free of the folder's own name."""
    return (
        {key: value for key, value in observed.items() if value != folder} if isinstance(observed, dict) else observed
    )


@pytest.fixture(autouse=True)
def one_more_method_and_task(monkeypatch):
    """With one method and one task, their `type` has no second value to try."""

    class AnotherMethod(MethodSettings):
        type: Literal["another"] = setting("another")
        target_modules: str = setting("mlp")

    class AnotherTask(TaskSettings):
        type: Literal["another"] = setting("another")

    def build(settings: AnotherMethod, targets: Any) -> Any:
        import peft

        return peft.IA3Config(target_modules=targets.linear, feedforward_modules=targets.linear)

    for registry, settings, function in ((METHODS, AnotherMethod, build), (TASKS, AnotherTask, lambda settings: None)):
        registry.names()
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        registry.register("another", settings)(function)


def real_settings() -> list[str]:
    return [name for name in every_setting() if "(another)" not in name]


def test_every_setting_has_a_case():
    missing = [name for name in real_settings() if name not in CASES]
    assert missing == [], "settings without proof that they do something"


def test_no_case_is_for_a_setting_that_is_gone():
    assert [name for name in CASES if name not in real_settings()] == []


@pytest.mark.parametrize("name", CASES)
def test_changing_a_setting_changes_something(name, world, tmp_path, monkeypatch):
    assert_changes(name, CASES[name], world, tmp_path, monkeypatch)


RESOLVED = [
    {},
    {"data.train.path": "@split.jsonl"},
    {"data.train.format": "text"},
    {"data.train.path": "@marked.jsonl", "data.template": "auto"},
    {"data.dev.path": "@dev.jsonl"},
    {"data.train.name": "e2e_nlg", "data.train.path": "@e2e"},
]


@pytest.mark.parametrize("given", RESOLVED, ids=str)
def test_the_resolved_configuration_prepares_the_same_rows(given, world, tmp_path):
    """What a run directory keeps trains again: nothing in it depends on how it was decided the first time."""
    from ghosttune.config.notation import to_yaml
    from ghosttune.stages.prepare import prepare

    first = prepare(configured(world, given))
    (tmp_path / "config.yaml").write_text(to_yaml(first.config.model_dump()))
    again = prepare(load_config(tmp_path / "config.yaml"))
    assert again.config == first.config
    for one, other in ((first.train, again.train), (first.dev, again.dev)):
        assert [row.example_id for row in one.features] == [row.example_id for row in other.features]
        assert [row.input_ids.tolist() for row in one.features] == [row.input_ids.tolist() for row in other.features]


def test_the_seed_also_draws_the_adapter(world, tmp_path, monkeypatch):
    assert_changes("train.seed", Case(adapter, 7), world, tmp_path, monkeypatch)


def test_a_setting_without_a_case_is_found():
    """A method with a setting of its own, as someone would add it, without a word here."""
    assert "method(another).target_modules" in every_setting()
    assert "method(another).target_modules" not in CASES


@pytest.mark.parametrize(
    "case", [Case(arguments, "elsewhere"), Case(rows, "elsewhere")], ids=lambda case: case.observed.__name__
)
def test_a_setting_that_does_nothing_there_is_found(case, world, tmp_path, monkeypatch):
    with pytest.raises(AssertionError, match=r"run\.name changes nothing"):
        assert_changes("run.name", case, world, tmp_path, monkeypatch)


def test_an_observation_that_changes_by_itself_is_found(world, tmp_path, monkeypatch):
    calls = iter(range(9))
    with pytest.raises(AssertionError, match="changes by itself"):
        assert_changes("run.name", Case(lambda *_: next(calls), "mine"), world, tmp_path, monkeypatch)
