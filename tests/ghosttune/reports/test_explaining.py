"""`show settings` teaches: every setting says what it takes, critical ones why and at what cost, a run its figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ghosttune.config.schema import KINDS, leaf_fields
from ghosttune.config.wording import accepted
from ghosttune.errors import InputError, RunError
from ghosttune.workflows.explaining import FIGURES, explained
from ghosttune.workflows.show import show

SCRIPTS = Path(__file__).parents[3] / "scripts"
EVERY = [
    (f"{entry.name}: {path}", field)
    for section, kinds in KINDS.items()
    for entry in kinds.registry
    for path, field in leaf_fields({section: entry.name})
]


HEADINGS = ("what", "why", "how", "benefit", "cost")


def test_every_setting_teaches_under_every_heading():
    for name, field in EVERY:
        facts = explained(name.split(": ")[1], field)
        assert list(facts) == [*HEADINGS, "default"], name


def test_no_text_stands_under_two_settings_or_two_headings():
    """A setting of the same path may mean the same under several methods, tasks and strategies."""
    said: dict[str, set[tuple[str, str]]] = {}
    for name, field in EVERY:
        path = name.split(": ")[1]
        facts = explained(path, field)
        for heading in set(HEADINGS) - {"how"}:
            said.setdefault(facts[heading].lower().rstrip("."), set()).add((path, heading))
    assert not {text: where for text, where in said.items() if len(where) > 1}
    assert len(said) > 4 * 100


def test_a_setting_that_chooses_the_others_takes_all_of_its_registry():
    for section, kinds in KINDS.items():
        facts = show("settings", f"{section}.{kinds.key}")[1]
        assert facts["how"].partition(";")[0] == " | ".join(entry.name for entry in kinds.registry)


def test_the_reference_is_what_the_schema_and_the_registries_hold():
    sys.path.insert(0, str(SCRIPTS))
    try:
        import build_reference
    finally:
        sys.path.remove(str(SCRIPTS))
    assert build_reference.PAGE.read_text(encoding="utf-8") == build_reference.page(), "run scripts/build_reference.py"


def test_every_setting_says_what_it_takes():
    assert all(accepted(field) for _, field in EVERY)


@pytest.mark.parametrize(
    "name, takes",
    [
        ("method.r", "a whole number, at least 1"),
        ("train.learning_rate", "a number, more than 0, less than 1"),
        ("train.num_train_epochs", "a number, more than 0, or null"),
        ("model.dtype", "float32 | bfloat16"),
        ("model.device", "auto, cpu, cuda or cuda:N"),
        ("model.trust_remote_code", "true or false"),
        ("run.trackers", "a list of tensorboard | wandb"),
        ("data.train.columns", "a mapping, or null"),
    ],
)
def test_what_settings_take(name, takes):
    assert show("settings", name)[1]["how"].startswith(takes)


def test_a_run_stands_beside_a_setting(full_run):
    record = json.loads((full_run / "run.json").read_text(encoding="utf-8"))
    facts = show("settings", "method.r", full_run)[1]
    assert facts["in run"] == "8, from default"
    counts = record["model"]["trainable_parameters"]
    assert f"{sum(counts.values()):,} trained parameters" in facts["figures"]
    assert f"12 updates in {record['stage_seconds']['train']:.1f} s" in facts["figures"]
    assert "guide loss lowered by" in facts["figures"]
    rate = show("settings", "train.learning_rate", full_run)[1]
    assert rate["in run"] == "0.01, from --set" and f"{record['verdict']['dev_loss']:.3f}" in rate["figures"]
    assert "padding was" in show("settings", "data.max_length", full_run)[1]["figures"]
    assert show("settings", "run.root", full_run)[0].splitlines()[-1].startswith("in run")


def test_a_run_that_measured_nothing_says_nothing_of_the_ledger(bare_run, full_run):
    fields = dict(leaf_fields())
    assert "figures" in explained("data.guide.rows", fields["data.guide.rows"], full_run)
    assert "figures" not in explained("data.guide.rows", fields["data.guide.rows"], bare_run)
    assert "guide loss" not in explained("method.r", fields["method.r"], bare_run)["figures"]


def test_a_run_that_was_killed_has_fewer_figures(full_run, tmp_path):
    record = json.loads((full_run / "run.json").read_text(encoding="utf-8"))
    late = ("tokens_per_second", "padding_share", "peak_memory_mb", "verdict", "ledger", "phases")
    begun = {name: value for name, value in record.items() if name not in late} | {"status": "running"}
    begun["stage_seconds"] = {"prepare": 1.0}
    (tmp_path / "run.json").write_text(json.dumps(begun), encoding="utf-8")
    (tmp_path / "config.yaml").write_text((full_run / "config.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    for name in FIGURES:
        settings = [path for path in record["origins"] if path == name or path.startswith(f"{name}.")]
        assert settings and all("in run" in show("settings", path, tmp_path)[1] for path in settings)
    assert "figures" not in show("settings", "train.learning_rate", tmp_path)[1]
    assert "trained parameters" in show("settings", "method.r", tmp_path)[1]["figures"]


def test_every_figure_belongs_to_settings_that_exist():
    paths = [name.split(": ")[1] for name, _ in EVERY]
    assert not [path for path in FIGURES if not any(f"{known}.".startswith(f"{path}.") for known in paths)]


def test_what_cannot_stand_beside_a_setting_is_refused(full_run, tmp_path):
    with pytest.raises(InputError, match="beside one setting"):
        show("methods", "lora", full_run)
    with pytest.raises(InputError, match="beside one setting"):
        show("settings", None, full_run)
    with pytest.raises(InputError, match=r"no setting method\.num_virtual_tokens"):
        show("settings", "method.num_virtual_tokens", full_run)
    with pytest.raises(RunError):
        show("settings", "method.r", tmp_path)
