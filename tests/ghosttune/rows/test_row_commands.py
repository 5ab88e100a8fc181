"""The commands about rows say on the command line what the workflows return."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from ghosttune.cli.main import app
from ghosttune.errors import InputError


def said(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_index_and_similar(run):
    changes = ("--size", 16, "--side", 2, "--layers", "*mlp*", "--projection", "gaussian", "--seed", 7)
    others = ("--split", "cheap", "--dtype", "float32", "--no-embeddings", "--batch-size", 3, "--device", "cpu")
    text = said("index", run, "--checkpoint", "all", "--sketch", "compact@1", *changes, *others)
    assert text.count("27 rows (27 new), projections of ") == 2 and "cosines within ±0." in text
    options = json.loads((run / "store/train/step-3/manifest.json").read_text())["meaning"]["sketch"]["options"]
    assert options == {
        "size": 16,
        "side": 2,
        "layers": ["*mlp*"],
        "embeddings": False,
        "kind": "gaussian",
        "split": "cheap",
        "seed": 7,
        "dtype": "float32",
    }
    first = said("similar", run, "copy-a", "--top", 2, "--checkpoint", "3", "--device", "cpu").splitlines()
    assert [line.split()[1] for line in first] == ["row-5", "copy-b"] and first[0].startswith("+1.0000  ")


def test_json(indexed, tmp_path):
    (store,) = json.loads(said("index", indexed, "--device", "cpu", "--json"))
    assert store["rows"] == 27 and store["exact"] is True
    asked = ("--prompt", "Say red number 7", "--completion", "red 7", "--top", 2, "--device", "cpu")
    found = json.loads(said("attribute", indexed, *asked, "--by", "preconditioned", "--damping", 0.5, "--json"))
    assert found["by"] == "preconditioned" and len(found["helpful"]) == 2
    assert set(found["helpful"][0]) == {"example_id", "score", "error", "content", "metadata"}
    assert len(json.loads(said("similar", indexed, "row-5", "--device", "cpu", "--json"))) == 10
    groups = json.loads(said("dedupe", indexed, "--cosine", 0.999, "--device", "cpu", "--json"))
    assert sorted(len(group["rows"]) for group in groups) == [2, 3]
    asked = ("--clusters", 2, "--out", tmp_path / "clusters.jsonl", "--device", "cpu")
    found = json.loads(said("cluster", indexed, *asked, "--json"))
    assert len(found["clusters"]) == 2 and found["file"] == str(tmp_path / "clusters.jsonl")
    out = tmp_path / "kept.jsonl"
    chosen = json.loads(
        said("select", indexed, "--keep", 9, "--by", "random", "--out", out, "--device", "cpu", "--json")
    )
    assert chosen == {"by": "random", "kept": 9, "dropped": 18, "file": str(out)}


def test_lines(indexed, tmp_path):
    assert said("dedupe", indexed, "--cosine", 0.999, "--device", "cpu").endswith(
        "2 groups, 3 rows more than one of each\n"
    )
    clusters = said("cluster", indexed, "--clusters", 24, "--by", "kind", "--top", 1, "--device", "cpu").splitlines()
    assert clusters[0] == "27 rows at step 6 in 24 clusters"
    assert clusters[1] == "cluster 1: 3 rows, mean cosine 1.000; kind: odd 3" and clusters[2].startswith("  +1.0000  ")
    out = tmp_path / "kept.jsonl"
    text = said("select", indexed, "--below", 9, "--by", "loss", "--out", out, "--device", "cpu")
    assert "27 rows kept by loss" in text and f"--set data.train.keep={out}" in text


def test_wrong_input_is_an_input_error(indexed):
    with pytest.raises(InputError, match="give either a query file"):
        said("attribute", indexed)
