"""Any valid configuration, written as YAML and read again, is the same configuration."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ghosttune.config.loading import load_config
from ghosttune.config.notation import parse_value, to_yaml
from ghosttune.config.rendering import commented_yaml, plain_yaml
from ghosttune.config.schema import ALTERNATIVES, DEPENDENT, INSTEAD, RunConfig, leaf_fields
from ghosttune.config.sections.train import ADAMW
from ghosttune.config.streams import ALL_ROWS
from ghosttune.errors import ConfigError

ODD = [
    "1e-4",
    "no",
    "null",
    "~",
    "017",
    "1:30",
    "'",
    '"',
    "- a",
    "a: b",
    "#",
    "{",
    "*a",
    "&a",
    "!b",
    "%",
    "?\xa0",
    "0\xa0",
    "@",
    "...",
    "---",
    "<<",
    "=",
]
TEXT = st.one_of(
    st.sampled_from(ODD),
    st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20).filter(
        lambda text: text.strip() != ""
    ),
)
LINES = st.text(st.characters(exclude_categories=("Cc", "Cs"), include_characters="\n\t\r"), max_size=20)
FILE_NAME = TEXT.filter(lambda text: not set(text) & set("/\\") and text.strip(" .\u2028\u2029") != "")
COUNT = st.integers(1, 10**6)
FEW = st.integers(1, 100)
SHARE = st.floats(0, 1, exclude_min=True, exclude_max=True)
BELOW_ONE = st.floats(0, 1, exclude_max=True)
POSITIVE = st.one_of(st.integers(1, 99), st.floats(1e-300, 1e300))
NEEDED = st.sampled_from(["prompt", "completion", "text", "split", "example_id"])
COLUMNS = st.dictionaries(NEEDED, TEXT, min_size=1, max_size=3).filter(
    lambda columns: len(set(columns.values())) == len(columns)
)

VALUES: dict[str, st.SearchStrategy] = {
    "model.name": TEXT,
    "model.init": st.sampled_from(["pretrained", "random"]),
    "model.revision": TEXT,
    "model.dtype": st.sampled_from(["float32", "bfloat16"]),
    "model.quantization": st.sampled_from(["none", "int8", "nf4"]),
    "model.device": st.sampled_from(["auto", "cpu", "cuda", "cuda:3"]),
    "model.attention": st.sampled_from(["eager", "sdpa", "flash_attention_2", "flex_attention"]),
    "model.chat_template": st.builds("{}{{{{ x }}}}{}".format, LINES, LINES),
    "model.trust_remote_code": st.booleans(),
    "method.type": st.just("lora"),
    "method.r": COUNT,
    "method.lora_alpha": POSITIVE,
    "method.parameter_budget": COUNT,
    "method.lora_dropout": BELOW_ONE,
    "method.use_rslora": st.booleans(),
    "method.use_dora": st.booleans(),
    "method.init_lora_weights": st.sampled_from(["default", "gaussian", "orthogonal", "eva"]),
    "method.init_rows": COUNT,
    "method.loraplus_lr_ratio": st.floats(1, 100),
    "method.target_modules": st.one_of(st.sampled_from(["mlp", "all_linear"]), st.lists(TEXT, min_size=1, max_size=3)),
    "method.trainable_token_indices": st.lists(st.integers(0, 10**6), max_size=3),
    "task.type": st.just("causal_lm"),
    "data.train.name": st.just("e2e_nlg"),
    "data.train.path": TEXT,
    "data.train.format": st.sampled_from(["auto", "text", "prompt_completion", "messages", "alpaca"]),
    "data.train.columns": COLUMNS,
    "data.train.limit": COUNT,
    "data.train.keep": TEXT,
    "data.train.patch": TEXT,
    "data.train.sources": st.dictionaries(FILE_NAME, st.fixed_dictionaries({"path": TEXT}), min_size=1, max_size=1),
    "data.train.temperature": st.floats(1e-3, 1e6),
    "data.train.streaming": st.booleans(),
    "data.train.shuffle_buffer": COUNT,
    "data.dev.fraction": SHARE,
    "data.dev.split": TEXT,
    "data.dev.path": TEXT,
    "data.dev.sources": st.dictionaries(FILE_NAME, st.fixed_dictionaries({"path": TEXT}), min_size=1, max_size=1),
    "data.dev.limit": COUNT,
    "data.template": st.sampled_from(["auto", "chat", "plain", "turns"]),
    "data.max_length": st.integers(8, 10**6),
    "data.loss_on": st.sampled_from(["completion", "last_turn", "all"]),
    "data.truncated_share": st.one_of(st.floats(0, 1), st.integers(0, 1)),
    "train.max_steps": st.integers(1000, 10**9),
    "train.num_train_epochs": POSITIVE,
    "train.per_device_train_batch_size": COUNT,
    "train.per_device_eval_batch_size": COUNT,
    "train.gradient_accumulation_steps": COUNT,
    "train.group_by_length": st.booleans(),
    "train.packing": st.booleans(),
    "train.order": st.sampled_from(["random", "length", "loss", "value"]),
    "train.order_descending": st.booleans(),
    "train.order_scores": TEXT,
    "train.learning_rate": SHARE,
    "train.optim": st.sampled_from(["adamw_torch_fused", "adamw_torch", "adamw_8bit", "adafactor", "sgd"]),
    "train.lr_scheduler_type": st.sampled_from(["cosine", "linear", "constant", "constant_with_warmup"]),
    "train.warmup_steps": st.integers(0, 200),
    "train.weight_decay": BELOW_ONE,
    "train.adam_beta1": BELOW_ONE,
    "train.adam_beta2": BELOW_ONE,
    "train.adam_epsilon": POSITIVE,
    "train.max_grad_norm": st.one_of(st.just(0), POSITIVE),
    "train.seed": st.integers(0, 2**32 - 1),
    "train.logging_steps": FEW,
    "train.eval_steps": st.integers(1, 30),
    "train.save_steps": FEW,
    "train.save_total_limit": COUNT,
    "train.early_stopping_patience": st.integers(1, 5),
    "train.early_stopping_threshold": st.floats(0, 9),
    "train.activation_checkpointing": st.booleans(),
    "train.fsdp": st.booleans(),
    "data.guide.fraction": SHARE,
    "data.guide.split": TEXT,
    "data.guide.rows": COUNT,
    "data.guide.path": TEXT,
    "forget.run": TEXT,
    "forget.rows": TEXT,
    "forget.loss": st.sampled_from(["npo", "gradient_ascent"]),
    "forget.beta": POSITIVE,
    "forget.retain": TEXT,
    "forget.retain_rows": COUNT,
    "forget.retain_weight": POSITIVE,
    "forget.until": POSITIVE,
    "measure.norms.every": st.one_of(st.none(), COUNT),
    "measure.norms.layers": st.booleans(),
    "measure.norms.effective": st.one_of(st.none(), COUNT),
    "measure.ledger.guide_every": st.one_of(st.none(), COUNT),
    "measure.ledger.guide_subset": st.one_of(st.none(), st.integers(4, 10**6)),
    "measure.ledger.values": st.sampled_from(["adamw", "sgd"]),
    "measure.unsupported": st.sampled_from(["exact", "leave_out", "refuse"]),
    "phases.strategy": st.sampled_from(["none", "plan", "early->late", "top-down"]),
    "data.mixture.by": st.sampled_from([None, "guide", "odm", "doremi"]),
    "data.mixture.every": st.integers(1, 9),
    "data.mixture.floor": st.floats(0.01, 1),
    "data.mixture.reference_losses": TEXT,
    "data.online_selection.by": st.sampled_from([None, "value", "loss", "gradient_norm", "random"]),
    "data.online_selection.candidates": st.integers(2, 10**6),
    "data.online_selection.lowest": st.booleans(),
    "evaluate.metrics": st.sampled_from(["auto", ["chrf"], ["chrf", "bleu"]]),
    "evaluate.synonyms": TEXT,
    "evaluate.tables": TEXT,
    "evaluate.general_text": TEXT,
    "evaluate.limit": st.one_of(st.none(), st.integers(0, 10**6)),
    "evaluate.max_new_tokens": COUNT,
    "evaluate.samples": st.integers(0, 10**6),
    "evaluate.shots": st.integers(0, 9),
    "run.name": FILE_NAME,
    "run.root": TEXT,
    "run.trackers": st.lists(st.sampled_from(["tensorboard", "mlflow"]), max_size=2),
    "alerts.on": st.just(["plateau", "nan"]),
    "alerts.webhook": st.just("ALERTS_GO_TO"),
    "alerts.command": TEXT,
    "alerts.patience": st.integers(1, 9),
}


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """Nested mappings of some settings, in any order, whose combination is possible."""
    chosen = draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True, max_size=12))
    flat = {path: draw(VALUES[path]) for path in chosen}
    if flat.get("data.train.streaming"):
        flat = streamed(flat)
    else:
        flat.pop("data.train.shuffle_buffer", None)
    for group in ALTERNATIVES:
        for extra in [path for path in chosen if path in group][1:]:
            flat.pop(extra, None)
    if flat.get("data.mixture.by") is not None:
        flat["data.train.sources"] = {"a": {"path": "a.jsonl"}, "b": {"path": "b.jsonl"}}
        flat["data.online_selection.by"] = None
        flat = {path: value for path, value in flat.items() if not path.startswith(("forget.", "train.order"))}
    if "data.dev.sources" in flat:
        flat = {path: value for path, value in flat.items() if (path, "data.dev.sources") not in INSTEAD}
    if "data.train.sources" in flat:
        flat = {path: value for path, value in flat.items() if (path, "data.train.sources") not in INSTEAD}
    elif "data.train.name" in flat:
        flat = {path: value for path, value in flat.items() if path not in ("data.train.format", "data.train.columns")}
    else:
        flat.setdefault("data.train.path", "rows.jsonl")
    if "data.train.sources" not in flat:
        flat.pop("data.train.temperature", None)
    if flat.get("train.lr_scheduler_type") == "constant":
        flat.pop("train.warmup_steps", None)
    if "train.early_stopping_threshold" in flat:
        flat.setdefault("train.early_stopping_patience", 2)
    if flat.get("model.quantization", "none") != "none":
        for plain in ("model.init", "method.init_lora_weights", "method.use_dora"):
            flat.pop(plain, None)
    if "model.revision" in flat:
        flat["model.name"] = "org/model"
    if flat.get("data.dev.split") == "train":
        flat["data.dev.split"] = "training"
    if flat.get("data.guide.split") in ("train", "test", flat.get("data.dev.split", "dev")):
        flat["data.guide.split"] = "guiding"
    if flat.get("train.optim", ADAMW[0]) not in ADAMW:
        flat["measure.ledger.guide_every"] = None
    if flat.get("train.optim") in ("adafactor", "sgd"):
        flat = {path: value for path, value in flat.items() if not path.startswith("train.adam_")}
    if flat.get("train.order", "random") == "random":
        flat.pop("train.order_descending", None)
    else:
        flat.pop("train.group_by_length", None)
    if flat.get("train.order", "random") in ("random", "length"):
        flat.pop("train.order_scores", None)
    elif flat["train.order"] == "value":
        flat.setdefault("train.order_scores", "run")
    if any(path.startswith("alerts.") for path in flat):
        flat.setdefault("alerts.on", ["plateau", "worse"])
        if "alerts.webhook" not in flat:
            flat.setdefault("alerts.command", "notify")
    if "forget.run" in flat:
        flat.setdefault("forget.rows", "gone.txt")
        for other in ("train.packing", "train.early_stopping_patience", "train.early_stopping_threshold"):
            flat.pop(other, None)
        flat["data.online_selection.by"] = None
        if flat.get("forget.loss") == "gradient_ascent":
            flat.pop("forget.beta", None)
    switches = {"measure.ledger.guide_every": 10, "data.online_selection.by": None, "forget.run": None}
    switches |= {"data.mixture.by": None}
    for switch, default in switches.items():
        if flat.get(switch, default) is None:
            flat = {path: value for path, value in flat.items() if path not in DEPENDENT[switch]}
    if flat.get("data.online_selection.by") == "random":
        flat.pop("data.online_selection.lowest", None)
    if flat.get("measure.ledger.guide_every", 10) is None and flat.get("data.online_selection.by") == "value":
        flat["data.online_selection.by"] = "loss"
    if flat.get("measure.ledger.guide_every", 10) is None and flat.get("data.mixture.by") == "guide":
        flat["data.mixture.by"] = "odm"
    if flat.get("data.mixture.by") == "doremi":
        flat.setdefault("data.mixture.reference_losses", "losses.jsonl")
    else:
        flat.pop("data.mixture.reference_losses", None)
    if flat.get("measure.norms.every", 1) is None:
        flat.pop("measure.norms.layers", None)
    if flat.get("train.fsdp"):
        flat["measure.norms.effective"] = None
    if flat.get("evaluate.limit") == 0:
        flat.pop("evaluate.metrics", None)
        flat.pop("evaluate.shots", None)
    if flat.get("evaluate.metrics", "auto") != "auto" or flat.get("evaluate.limit") == 0:
        for needed in ("evaluate.synonyms", "evaluate.tables"):
            flat.pop(needed, None)
    return nested(flat)


def streamed(flat: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that need all rows, and with the files that stand for what is set aside."""
    gone = (*ALL_ROWS, "data.train.sources", "data.train.name", "forget.", "data.mixture.", "data.dev.", "train.order")
    gone += ("evaluate.shots",)
    kept = {path: value for path, value in flat.items() if not path.startswith(gone)}
    return kept | {"data.dev.path": "dev.jsonl", "data.guide.path": "guide.jsonl"}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *groups, last = path.split(".")
        level = tree
        for group in groups:
            level = level.setdefault(group, {})
        level[last] = value
    return tree


def test_the_random_configurations_reach_every_setting():
    assert set(VALUES) == {path for path, _ in leaf_fields()}


@settings(
    max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(trees())
def test_what_is_written_reads_back_equal(tmp_path_factory, tree):
    config = load_config(tree)
    folder = tmp_path_factory.getbasetemp()
    written = {
        "plain.yaml": plain_yaml(config),
        "commented.yaml": commented_yaml(config),
        "trip.json": config.model_dump_json(),
    }
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
        again = load_config(folder / name)
        assert again == config and again.model_dump() == config.model_dump() and hash(again) == hash(config)
    (folder / "typed.json").write_text(json.dumps(tree))
    (folder / "typed.yaml").write_text(to_yaml(tree), encoding="utf-8")
    assert load_config(folder / "typed.json") == load_config(folder / "typed.yaml") == config


def test_a_value_of_any_length_stays_apart_from_the_comment_behind_it(tmp_path):
    for length in range(1, 120):
        config = load_config({"data": {"train": {"path": "rows.jsonl"}, "dev": {"path": "/" + "x" * length}}})
        (tmp_path / "config.yaml").write_text(commented_yaml(config))
        assert load_config(tmp_path / "config.yaml") == config


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(
    st.one_of(
        TEXT, st.text(max_size=20).filter(lambda text: text.isprintable()), st.integers(), st.floats(allow_nan=False)
    )
)
def test_any_single_value_reads_back(value):
    again = parse_value(to_yaml(value))
    assert again == value and type(again) is type(value)


@settings(
    max_examples=300, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.one_of(st.sampled_from(list(RunConfig.model_fields)), st.text(max_size=6)), inner, max_size=4
            ),
        ),
        max_leaves=12,
    )
)
def test_whatever_is_given_the_answer_is_a_configuration_or_a_list_of_problems(tree):
    try:
        load_config({"train": tree, "method": tree, "data": {"train": {"path": "x"}, "dev": tree}})
    except ConfigError as error:
        assert error.problems and all(problem.setting and problem.message for problem in error.problems)


def test_the_dumper_of_pyyaml_would_not_do():
    """What this notation is for: PyYAML writes the text `1e-4` as it stands, and then it is a number."""
    import yaml

    assert yaml.safe_dump("1e-4").startswith("1e-4") and to_yaml("1e-4").startswith("'1e-4'")
    with pytest.raises(AssertionError):
        assert parse_value(yaml.safe_dump("1e-4").split("\n")[0]) == "1e-4"
