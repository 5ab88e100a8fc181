"""Evaluation on real rows: what tuning is worth on E2E, and labels of MultiNLI two ways."""

from __future__ import annotations

import gzip
import json

import pytest

from ghosttune import evaluate, load_config, train


@pytest.mark.slow(seconds=20)
def test_a_run_on_real_e2e_rows_beats_the_untouched_base_with_disjoint_intervals(shared, tmp_path):
    config = load_config(
        {
            "model": {"name": "builtin:tiny", "device": "cpu"},
            "method": {"r": 16, "lora_alpha": 32},
            "data": {
                "train": {"name": "e2e_nlg", "path": str(shared / "data/e2e"), "limit": 700},
                "dev": {"split": "dev", "limit": 20},
                "max_length": 320,
            },
            # grouped, 70 updates are enough: rows as they are drawn took longer to leave the base behind
            "train": {"max_steps": 70, "learning_rate": 3e-3, "eval_steps": 70, "group_by_length": True},
            "measure": {"norms": {"every": None, "effective": None}, "ledger": None},
            "evaluate": {"metrics": ["bleu_lowercase", "chrf", "rouge_l"], "max_new_tokens": 50},
        }
    )
    run = train(config, tmp_path / "run")
    found = run.evaluation["dev"]
    for name in ("bleu_lowercase", "chrf", "rouge_l"):
        assert found["adapter"][name]["low"] > found["base"][name]["high"], name
        assert found["comparison"]["base"][name]["verdict"] == "better"
    assert found["questions"] == len(run.predictions) <= 20
    assert max(len(row["references"]) for row in run.predictions) >= 5, "all references, not those of 20 rows only"
    assert evaluate(run.path)["dev"] == found


@pytest.mark.slow
def test_labels_of_real_nli_rows_by_generation_and_by_likelihood(shared, tmp_path):
    lines = gzip.decompress((shared / "data/nli/mnli_matched_1k.tsv.gz").read_bytes()).decode().splitlines()[:60]
    rows = [dict(zip(("label", "premise", "hypothesis"), line.split("\t"), strict=True)) for line in lines]
    asked = [
        {"prompt": f"premise: {row['premise']}\nhypothesis: {row['hypothesis']}\nlabel:", "completion": row["label"]}
        for row in rows
    ]
    path = tmp_path / "mnli.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in asked))
    chosen = "evaluate.metrics=[accuracy, unparsed, likelihood_accuracy, likelihood_macro_f1]"
    found = evaluate("builtin:tiny", path, overrides=[chosen, "evaluate.max_new_tokens=8"])["data-mnli"]
    most = max(sum(row["label"] == label for row in rows) for label in ("entailment", "neutral", "contradiction"))
    assert found["constant"]["accuracy"]["value"] == found["constant"]["likelihood_accuracy"]["value"] == most / 60
    assert found["model"]["unparsed"]["value"] > 0.9, "a model of its own small world names no label"
    by_likelihood = found["details"]["model"]["likelihood_accuracy"]
    assert by_likelihood["unparsed"] == 0 and sum(map(sum, by_likelihood["confusion"]["rows_are_truth"])) == 60
    assert found["comparison"]["constant"]["likelihood_accuracy"]["verdict"] in ("worse", "not distinguishable")
