"""Presets of preferences, GRPO, tools and mixtures: `check` finds nothing wrong, and they train, on small rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_presets_trained import OF_TASKS, e2e, samsum

from ghosttune import train
from ghosttune.config.loading import load_config
from ghosttune.workflows.check import check

CHAT = """{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}
{%- for m in messages %}{{ m.role }}: {{ m.content or '' }}
{%- for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}
{%- if m.role == 'assistant' %}{{ eos_token }}{% endif %} {% endfor %}
{%- if add_generation_prompt %}assistant: {% endif %}"""

Changes = dict[str, Any]


def _file(folder: Path, rows: list[dict[str, Any]]) -> Changes:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"data.train.name": None, "data.train.path": str(folder / "rows.jsonl"), "data.dev.fraction": 0.2}


def pairs(folder: Path) -> Changes:
    """Columns of DPO-En-Zh-20k."""
    said = [{"from": "gpt", "value": value} for value in ("It is {}.", "No idea about {}.")]
    return _file(
        folder,
        [
            {"conversations": [{"from": "human", "value": f"What is number {n}?"}]}
            | {
                name: {**turn, "value": turn["value"].format(n)}
                for name, turn in zip(("chosen", "rejected"), said, strict=True)
            }
            for n in range(80)
        ],
    ) | {"data.guide.rows": 8}


def questions(folder: Path) -> Changes:
    """Columns of GSM8K, and an answer that ends with its number."""
    rows = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}\n#### {2 * n}"} for n in range(60)]
    return _file(folder, rows) | {"data.guide.rows": 8, "task.completions": 2, "task.max_new_tokens": 4}


def calls(folder: Path) -> Changes:
    """Columns of glaive_toolcall_en."""
    tool = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    rows = [
        {
            "conversations": [
                {"from": "human", "value": f"How is it in town {n}?"},
                {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": f"{n}"}})},
                {"from": "observation", "value": json.dumps({"sun": n})},
                {"from": "gpt", "value": f"Sun of {n}."},
            ],
            "tools": json.dumps([tool]),
        }
        for n in range(80)
    ]
    return _file(folder, rows) | {"data.guide.rows": 8, "model.chat_template": CHAT}


def two(folder: Path) -> Changes:
    changes: Changes = {"data.guide.rows": 8, "data.dev.limit": 8}
    for name, write in (("samsum", samsum), ("e2e", e2e)):
        (folder / name).mkdir()
        write(folder / name)
        changes[f"data.train.sources.{name}.path"] = str(folder / name)
    return changes


LAYOUTS: dict[str, Callable[[Path], Changes]] = {
    "preference": pairs,
    "grpo": questions,
    "tools": calls,
    "mixture": two,
}


def test_they_are_these() -> None:
    assert LAYOUTS.keys() == set(OF_TASKS)


@pytest.mark.parametrize("preset", LAYOUTS)
def test_a_preset_passes_check_and_trains(preset: str, tmp_path: Path, tiny_model: Path) -> None:
    small: Changes = {"model.name": str(tiny_model), "model.device": "cpu", "data.max_length": 256}
    small |= {"train.max_steps": 3, "train.num_train_epochs": None, "train.warmup_steps": 0}
    small |= {"train.per_device_train_batch_size": 2, "train.gradient_accumulation_steps": 1}
    small |= {"train.eval_steps": None, "train.save_steps": None, "evaluate.limit": 2, "evaluate.max_new_tokens": 4}
    small |= LAYOUTS[preset](tmp_path)
    overrides = [f"{path}={json.dumps(value)}" for path, value in small.items()]
    config = load_config(preset=preset, overrides=overrides)
    report = check(config, [], None, False, None, False)
    assert report.as_dict()["errors"] == []
    run = train(config, tmp_path / "run")
    assert run.record["status"] == "finished" and run.folder.adapter.is_dir()
    values = run.folder.export("values").read_text().splitlines()
    assert len(values) > 2 and not re.search(r"\bnan\b|\binf\b", "\n".join(values))
