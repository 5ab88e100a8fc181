"""Every rule about combinations: what it refuses, and the nearest thing that it lets through."""

from __future__ import annotations

from typing import Any

import pytest

from ghosttune.config.checking import RULES, conflicts
from ghosttune.config.loading import load_config, with_values
from ghosttune.config.schema import section_class
from ghosttune.config.sections.data import DevSettings, SourceSettings
from ghosttune.tasks.preference import PreferenceSettings

BASE = load_config({"data": {"train": {"path": "builtin:rows"}}})


def method(name: str, **settings: Any) -> Any:
    """The settings of a method."""
    return section_class("method", name)(**settings)


FORGET = {"forget.run": "run", "forget.rows": "gone.txt"}
OTHER = {"method": method("lora")}
PHASES = section_class("phases", "plan").model_validate({"strategy": "plan", "plan": "both@0-400"})
SHARED = {"train.fsdp": True, "measure.norms.effective": None}
GUIDED = section_class("phases", "guided")()


def mixture(**sources: dict[str, Any]) -> Any:
    """The settings of several sources."""
    return SourceSettings(sources=sources)  # pyright: ignore[reportArgumentType]


def grpo(**settings: Any) -> Any:
    """The settings of the task."""
    return section_class("task", "grpo")(**settings)


GRPO, CAUSAL = grpo(), section_class("task", "causal_lm")()


def dev_sets(**sources: dict[str, Any]) -> Any:
    """The dev section with these sets."""
    return DevSettings.model_validate({"sources": sources})


NO_LEDGER = {"measure.ledger.guide_every": None}
STREAM = {"data.train.streaming": True, "data.dev.path": "dev.jsonl", "data.guide.path": "guide.jsonl"}
CHAT, QUESTIONS = {"path": "chat.jsonl"}, {"path": "questions.jsonl"}
MIXED = {"data.train": mixture(chat=CHAT, questions=QUESTIONS)}
SETS = {"data.dev": dev_sets(chat={"path": "chat-dev.jsonl"})}

CASES = {
    "_an_average_instead_of_a_schedule": [
        (
            {"train.optim": "schedule_free_adamw"} | NO_LEDGER,
            "train.lr_scheduler_type",
            {"train.lr_scheduler_type": "constant_with_warmup"},
        ),
        (
            {"train.optim": "schedule_free_adamw", "train.lr_scheduler_type": "constant_with_warmup"}
            | {"phases": PHASES, "train.max_steps": 400}
            | NO_LEDGER,
            "phases.strategy",
            {"train.optim": "adamw_torch"},
        ),
    ],
    "_one_run_length": [
        ({"train.num_train_epochs": 2.0}, "train.num_train_epochs", {"train.max_steps": None}),
        ({"train.max_steps": None}, "train.max_steps", {"train.num_train_epochs": 2.0}),
    ],
    "_warmup_inside_the_run": [
        ({"train.max_steps": 10}, "train.warmup_steps", {"train.warmup_steps": 9}),
        ({"train.max_steps": 1}, "train.warmup_steps", {"train.warmup_steps": 0}),
    ],
    "_warmup_with_a_curve": [
        ({"train.lr_scheduler_type": "constant"}, "train.warmup_steps", {"train.warmup_steps": 0}),
        (
            {"train.lr_scheduler_type": "constant"},
            "train.warmup_steps",
            {"train.lr_scheduler_type": "constant_with_warmup"},
        ),
    ],
    "_code_of_a_kernel": [
        ({"model.attention": "org/kernel"}, "model.attention", {"model.trust_remote_code": True}),
        ({"model.attention": "org/kernel"}, "model.attention", {"model.attention": "flash_attention_2"}),
    ],
    "_scores_that_order": [
        ({"train.order_descending": True}, "train.order_descending", {"train.order": "length"}),
        ({"train.order_scores": "file"}, "train.order_scores", {"train.order": "loss"}),
        ({"train.order": "length", "train.order_scores": "file"}, "train.order_scores", {"train.order": "value"}),
        ({"train.order": "value"}, "train.order_scores", {"train.order_scores": "run"}),
        ({"train.order": "length", "train.group_by_length": True}, "train.group_by_length", {"train.order": "random"}),
    ],
    "_something_to_forget": [
        ({"forget.rows": "gone.txt"}, "forget.rows", {"forget.run": "run"}),
        ({"forget.run": "run"}, "forget.rows", {"forget.rows": "gone.txt"}),
        (
            FORGET | {"forget.retain": "kept.txt", "forget.retain_rows": 3},
            "forget.retain_rows",
            {"forget.retain": None},
        ),
        (
            FORGET | {"forget.retain_rows": 0, "forget.retain_weight": 2.0},
            "forget.retain_weight",
            {"forget.retain_rows": 1},
        ),
        (FORGET | {"forget.loss": "gradient_ascent", "forget.beta": 0.3}, "forget.beta", {"forget.loss": "npo"}),
    ],
    "_how_rows_are_forgotten": [
        (
            FORGET | {"task": PreferenceSettings(type="preference")},
            "forget.run",
            {"forget.run": None, "forget.rows": None},
        ),
        (FORGET | {"train.packing": True}, "train.packing", {"train.packing": False}),
        (FORGET | {"data.online_selection.by": "loss"}, "data.online_selection.by", {"data.online_selection.by": None}),
        (
            FORGET | {"train.early_stopping_patience": 1},
            "train.early_stopping_patience",
            {"train.early_stopping_patience": None},
        ),
    ],
    "_a_step_the_ledger_knows": [
        ({"train.optim": "adamw_8bit"}, "measure.ledger.guide_every", {"measure.ledger.guide_every": None}),
        ({"train.optim": "sgd"}, "measure.ledger.guide_every", {"train.optim": "adamw_torch"}),
    ],
    "_moments_that_are_kept": [
        ({"train.optim": "sgd", "train.adam_beta2": 0.9}, "train.adam_beta2", {"train.adam_beta2": 0.999} | NO_LEDGER),
        (
            {"train.optim": "lion_8bit", "train.adam_epsilon": 1e-6},
            "train.adam_epsilon",
            {"train.optim": "adamw_torch"},
        ),
    ],
    "_rows_that_can_be_packed": [
        (
            {"train.packing": True, "task": section_class("task", "seq2seq_lm")()},
            "train.packing",
            {"train.packing": False},
        ),
        ({"train.packing": True, "method": method("prefix_tuning")}, "train.packing", {"train.packing": False}),
        ({"train.packing": True, "method": method("p_tuning")}, "train.packing", OTHER),
    ],
    "_what_quantization_leaves": [
        ({"model.quantization": "nf4", "model.init": "random"}, "model.init", {"model.init": "pretrained"}),
        *[
            ({"model.quantization": "nf4", "method": method(name)}, "model.quantization", OTHER)
            for name in ("full", "layernorm", "bitfit", "loha", "lokr")
        ],
    ],
    "_what_the_method_cannot_do": [
        *[
            (
                {"method": method("lora", init_lora_weights=start), "model.quantization": "nf4"},
                "method.init_lora_weights",
                OTHER,
            )
            for start in ("pissa", "olora", "orthogonal", "corda", "lora_ga")
        ],
        (
            {"method": method("lora", use_dora=True), "model.quantization": "int8", "model.device": "cpu"},
            "method.use_dora",
            {"model.quantization": "nf4"},
        ),
        *[
            ({"method": method("lora", use_dora=True, init_lora_weights=start)}, "method.init_lora_weights", OTHER)
            for start in ("pissa", "olora", "corda", "lora_ga")
        ],
        *[
            ({"method": method("lora", parameter_budget=9, init_lora_weights=start)}, "method.init_lora_weights", OTHER)
            for start in ("pissa", "olora", "corda", "lora_ga")
        ],
        ({"method": method("adalora", init_r=4)}, "method.target_r", OTHER),
        ({"method": method("adalora", tfinal=300)}, "method.tfinal", {"train.max_steps": 301}),
        ({"method": method("adalora", tinit=300)}, "method.tinit", {"train.max_steps": 301}),
        ({"method": method("adalora"), "phases": PHASES, "train.max_steps": 400}, "method.type", OTHER),
        (
            {"method": method("prefix_tuning"), "train.activation_checkpointing": True},
            "train.activation_checkpointing",
            OTHER,
        ),
        *[
            ({"method": method(name), "model.dtype": "bfloat16"}, "model.dtype", OTHER)
            for name in ("full", "layernorm", "bitfit")
        ],
    ],
    "_what_is_shared_out": [
        ({"train.fsdp": True}, "measure.norms.effective", {"measure.norms.effective": None}),
        *[
            (SHARED | changes, "train.fsdp", {"train.fsdp": False})
            for changes in (
                {"method": method("full")},
                {"model.quantization": "nf4"},
                *({"method": method("lora", init_lora_weights=name)} for name in ("pissa", "olora", "eva")),
            )
        ],
    ],
    "_intervals_inside_the_run": [
        ({"train.logging_steps": 301}, "train.logging_steps", {"train.logging_steps": 300}),
        ({"train.eval_steps": 301}, "train.eval_steps", {"train.eval_steps": 300}),
        ({"train.save_steps": 301}, "train.save_steps", {"train.max_steps": 301}),
    ],
    "_threshold_with_patience": [
        (
            {"train.early_stopping_threshold": 0.1},
            "train.early_stopping_threshold",
            {"train.early_stopping_patience": 3},
        ),
    ],
    "_stopping_can_happen": [
        (
            {"train.early_stopping_patience": 9, "train.eval_steps": 30},
            "train.early_stopping_patience",
            {"train.early_stopping_patience": 8},
        ),
        (
            {"train.early_stopping_patience": 9, "train.eval_steps": 30},
            "train.early_stopping_patience",
            {"train.max_steps": 301},  # an eleventh evaluation at the end
        ),
        (
            {"train.early_stopping_patience": 1, "train.eval_steps": 150},
            "train.early_stopping_patience",
            {"train.eval_steps": 100},
        ),
    ],
    "_what_a_stream_can_do": [
        ({"data.train.shuffle_buffer": 9}, "data.train.shuffle_buffer", {"data.train.shuffle_buffer": 10_000}),
        (STREAM | {"data.dev.path": None}, "data.dev.path", STREAM),
        (STREAM | {"data.guide.path": None}, "data.guide.path", STREAM),
        (STREAM | {"data.guide.path": None}, "data.guide.path", {"data.guide.path": None} | NO_LEDGER),
        (STREAM | {"train.group_by_length": True}, "train.group_by_length", {"train.group_by_length": False}),
        (STREAM | {"task": grpo()}, "data.train.streaming", {"task": CAUSAL}),
    ],
    "_one_dev_source": [
        ({"data.dev.fraction": 0.1, "data.dev.split": "dev"}, "data.dev.split", {"data.dev.fraction": None}),
        ({"data.dev.path": "x", "data.dev.split": "dev"}, "data.dev.path", {"data.dev.split": None}),
        (SETS | {"data.dev.split": "dev"}, "data.dev.sources", {"data.dev.split": None}),
    ],
    "_dev_sets_that_are_read": [
        ({"data.dev": dev_sets()}, "data.dev.sources", SETS),
        ({"data.dev": dev_sets(a={})}, "data.dev.sources.a.path", SETS),
        ({"data.dev": dev_sets(a=CHAT, b=CHAT)}, "data.dev.sources.b", SETS),
    ],
    "_options_of_learnt_weights": [
        ({"data.mixture.every": 5}, "data.mixture.every", {"data.mixture.every": 10}),
        ({"data.mixture.floor": 0.5}, "data.mixture.floor", MIXED | {"data.mixture.by": "odm"}),
    ],
    "_weights_that_can_be_learnt": [
        ({"data.mixture.by": "guide"}, "data.mixture.by", MIXED),
        (
            MIXED | {"data.mixture.by": "guide", "measure.ledger.guide_every": None},
            "data.mixture.by",
            {"data.mixture.by": "odm"},
        ),
    ],
    "_one_who_says_what_trains": [
        (
            MIXED | {"data.mixture.by": "odm", "data.online_selection.by": "loss"},
            "data.mixture.by",
            {"data.online_selection.by": None},
        ),
        (MIXED | {"data.mixture.by": "odm", "train.order": "length"}, "data.mixture.by", {"train.order": "random"}),
    ],
    "_weights_change_inside_the_run": [
        (
            MIXED | {"data.mixture.by": "odm", "data.mixture.every": 300, "train.max_steps": 300},
            "data.mixture.every",
            {"data.mixture.every": 10},
        ),
    ],
    "_one_guide_source": [
        ({"data.guide.fraction": 0.1, "data.guide.split": "x"}, "data.guide.split", {"data.guide.fraction": None}),
        ({"data.guide.fraction": 0.1, "data.guide.rows": 9}, "data.guide.rows", {"data.guide.rows": None}),
        ({"data.guide.fraction": 0.1, "data.guide.path": "x"}, "data.guide.path", {"data.guide.fraction": None}),
        ({"data.guide.split": "guide", "data.guide.path": "x"}, "data.guide.path", {"data.guide.split": None}),
    ],
    "_guide_rows_of_their_own": [
        ({"data.guide.split": "train"}, "data.guide.split", {"data.guide.split": "guide"}),
        ({"data.guide.split": "test"}, "data.guide.split", {"data.guide.split": "guide"}),
        ({"data.guide.split": "dev", "data.dev.split": "dev"}, "data.guide.split", {"data.guide.split": "guide"}),
    ],
    "_options_of_a_selection": [
        (
            {"data.online_selection.candidates": 3},
            "data.online_selection.candidates",
            {"data.online_selection.by": "loss"},
        ),
        ({"data.online_selection.lowest": True}, "data.online_selection.lowest", {"data.online_selection.by": "loss"}),
    ],
    "_no_lowest_draw": [
        (
            {"data.online_selection.by": "random", "data.online_selection.lowest": True},
            "data.online_selection.lowest",
            {"data.online_selection.by": "gradient_norm"},
        ),
    ],
    "_values_to_select_by": [
        (
            {"data.online_selection.by": "value", "measure.ledger.guide_every": None},
            "data.online_selection.by",
            {"data.online_selection.by": "loss"},
        ),
    ],
    "_guide_rows_for_a_ledger": [
        (
            {"measure.ledger.guide_every": None, "data.guide.rows": 9},
            "data.guide.rows",
            {"measure.ledger.guide_every": 5},
        ),
        (
            {"measure.ledger.guide_every": None, "measure.ledger.values": "sgd"},
            "measure.ledger.values",
            {"measure.ledger.values": "removal"},
        ),
        (
            {"measure.ledger.guide_every": None, "measure.ledger.guide_subset": 8},
            "measure.ledger.guide_subset",
            {"measure.ledger.guide_subset": None},
        ),
    ],
    "_layers_of_norms": [
        (
            {"measure.norms.every": None, "measure.norms.layers": False},
            "measure.norms.layers",
            {"measure.norms.layers": True},
        ),
    ],
    "_dev_rows_of_their_own": [
        ({"data.dev.split": "train"}, "data.dev.split", {"data.dev.split": "test"}),
    ],
    "_a_training_source": [
        ({"data.train.path": None}, "data.train.path", {"data.train.name": "e2e_nlg"}),
        ({"data.train.path": None}, "data.train.path", {"data.train.path": "rows.jsonl"}),
    ],
    "_one_source_or_several": [
        ({"data.train.temperature": 2.0}, "data.train.temperature", {"data.train.temperature": None}),
        ({"data.train": mixture()}, "data.train.sources", {"data.train": mixture(chat=CHAT)}),
        (
            {"data.train": mixture(chat=CHAT), "data.train.limit": 3},
            "data.train.limit",
            {"data.train.limit": None},
        ),
        (
            {"data.train": mixture(chat=CHAT, again=CHAT)},
            "data.train.sources.again",
            {"data.train": mixture(chat=CHAT, questions=QUESTIONS)},
        ),
        (
            {"data.train": mixture(chat=CHAT | {"weight": 2.0}, questions=QUESTIONS)},
            "data.train.sources.questions.weight",
            {"data.train": mixture(chat=CHAT | {"weight": 2.0}, questions=QUESTIONS | {"weight": 1.0})},
        ),
    ],
    "_a_known_dataset": [
        ({"data.train.name": "e2e"}, "data.train.name", {"data.train.name": "e2e_nlg"}),
        ({"data.train.name": "e2e_nlg", "data.train.format": "text"}, "data.train.format", {"data.train.name": None}),
        (
            {"data.train.name": "e2e_nlg", "data.train.columns": {"prompt": "mr"}},
            "data.train.columns",
            {"data.train.columns": None},
        ),
    ],
    "_known_metrics": [
        ({"evaluate.metrics": ["blue"]}, "evaluate.metrics", {"evaluate.metrics": ["bleu"]}),
        ({"evaluate.metrics": ["bleu", "bleu"]}, "evaluate.metrics", {"evaluate.metrics": ["bleu", "chrf"]}),
    ],
    "_files_of_metrics": [
        ({"evaluate.metrics": ["sql_execution"]}, "evaluate.tables", {"evaluate.tables": "tables"}),
        (
            {"evaluate.metrics": ["bleu"], "evaluate.synonyms": "wordnet"},
            "evaluate.synonyms",
            {"evaluate.metrics": ["meteor"]},
        ),
        ({"evaluate.metrics": ["bleu"], "evaluate.tables": "t"}, "evaluate.tables", {"evaluate.metrics": "auto"}),
    ],
    "_evaluation_at_all": [
        ({"evaluate.limit": 0, "evaluate.metrics": ["bleu"]}, "evaluate.metrics", {"evaluate.limit": 1}),
        ({"evaluate.limit": 0, "evaluate.tables": "t"}, "evaluate.tables", {"evaluate.tables": None}),
        ({"evaluate.limit": 0, "evaluate.shots": 2}, "evaluate.shots", {"evaluate.shots": 0}),
    ],
    "_examples_in_prompts": [
        ({"evaluate.shots": 2, "data.train.streaming": True}, "evaluate.shots", {"data.train.streaming": False}),
        (
            {"evaluate.shots": 2, "task": section_class("task", "seq2seq_lm")()},
            "evaluate.shots",
            {"task": CAUSAL},
        ),
    ],
    "_each_column_once": [
        (
            {"data.train.columns": {"prompt": "a", "completion": "a"}},
            "data.train.columns",
            {"data.train.columns": {"prompt": "a", "completion": "b"}},
        ),
    ],
    "_phases_inside_the_run": [
        ({"phases": PHASES}, "phases.plan", {"train.max_steps": 400}),
    ],
    "_a_signal_that_is_measured": [
        (
            {"phases": GUIDED, "measure.norms.effective": None},
            "phases.signal",
            {"measure.norms.effective": 50},
        ),
        ({"phases": GUIDED, "measure.norms.effective": 60}, "phases.signal", {"measure.norms.effective": 10}),
    ],
    "_what_the_task_cannot_do": [
        (
            {"task": PreferenceSettings(type="preference"), "data.loss_on": "all"},
            "data.loss_on",
            {"data.loss_on": "completion"},
        ),
        (
            {"task": PreferenceSettings(type="preference", simpo_gamma=0.3)},
            "task.simpo_gamma",
            {"task": PreferenceSettings(type="preference", loss="simpo", simpo_gamma=0.3)},
        ),
        ({"task": GRPO, "data.loss_on": "all"}, "data.loss_on", {"data.loss_on": "completion"}),
        ({"task": GRPO, "evaluate.limit": 0}, "evaluate.limit", {"evaluate.limit": 10}),
        ({"task": GRPO, "data.online_selection.by": "random"}, "data.online_selection.by", {"task": CAUSAL}),
        (FORGET | {"task": GRPO}, "forget.run", {"task": CAUSAL}),
        (SHARED | {"task": GRPO, "data.loss_on": "completion"}, "train.fsdp", {"train.fsdp": False}),
        (MIXED | {"task": GRPO, "data.mixture.by": "odm"}, "data.mixture.by", {"task": CAUSAL}),
        ({"task": grpo(epsilon=0.1)}, "task.epsilon", {"task": grpo(epsilon=0.1, updates=2)}),
        ({"task": grpo(beta=0.1), "method": method("full")}, "task.beta", {"method": method("lora")}),
        ({"task": grpo(rewards=["bleu"])}, "task.rewards", {"task": grpo(rewards=["sql_match", "own.py:f"])}),
        ({"task": grpo(rewards=["exact"])}, "task.rewards", {"task": GRPO}),
        ({"task": grpo(rewards=["exact_match"] * 2)}, "task.rewards", {"task": GRPO}),
        ({"task": grpo(rewards=["sql_execution"])}, "evaluate.tables", {"evaluate.tables": "tables"}),
    ],
    "_somebody_to_tell": [
        ({"alerts.on": ["nan"]}, "alerts.on", {"alerts.webhook": "HOOK"}),
        (
            {"alerts.on": ["nan"], "alerts.webhook": "HOOK", "alerts.patience": 9},
            "alerts.patience",
            {"alerts.on": ["nan", "plateau"]},
        ),
        ({"alerts.webhook": "HOOK"}, "alerts.webhook", {"alerts.on": ["nan"]}),
    ],
    "_revision_of_a_hub_id": [
        ({"model.revision": "main"}, "model.revision", {"model.name": "org/model"}),
        ({"model.revision": "main", "model.name": "/folder"}, "model.revision", {"model.revision": None}),
    ],
}


@pytest.mark.parametrize(
    ("rule", "wrong", "setting", "remedy"), [(rule, *case) for rule in CASES for case in CASES[rule]]
)
def test_a_rule_refuses_its_case_and_lets_the_remedy_through(rule, wrong, setting, remedy):
    (find,) = [known.find for known in RULES if known.find.__name__ == rule]
    assert [path for path, _ in find(with_values(BASE, wrong))] == [setting]
    assert conflicts(with_values(BASE, wrong | remedy)) == []


def test_every_rule_has_cases():
    assert {rule.find.__name__ for rule in RULES} == set(CASES)


def test_the_base_has_no_conflicts():
    assert conflicts(BASE) == []


def test_conflicts_of_settings_already_reported_are_not_repeated():
    wrong = with_values(BASE, {"train.max_steps": 5})
    assert [problem.setting for problem in conflicts(wrong)] == ["train.warmup_steps"]
    assert conflicts(wrong, {"train.max_steps"}) == [] == conflicts(wrong, {"train.warmup_steps"})
    assert conflicts(wrong, {"train"}) == [] and conflicts(wrong, {"train.seed"}) != []


def test_messages_give_the_numbers_and_the_place(problems):
    (found,) = problems("train:\n  max_steps: 3\n  warmup_steps: 100")
    assert "must be fewer than the run's 3 steps (got 100)" in found and found.endswith("[run.yaml:4]")
    (found,) = problems("train: {max_steps: 1}")
    assert "the run's 1 step (got 10)" in found


def test_a_constant_learning_rate_needs_no_warmup_by_default():
    config = load_config({"data": {"train": {"path": "x"}}, "train": {"lr_scheduler_type": "constant"}})
    assert config.train.warmup_steps == 0
    assert load_config(config.model_dump()) == config


def test_a_revision_of_a_relative_folder_is_refused_too(tmp_path, monkeypatch, problems):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (found,) = problems("model: {name: weights, revision: main}")
    assert found.startswith("model.revision: does nothing for /")
