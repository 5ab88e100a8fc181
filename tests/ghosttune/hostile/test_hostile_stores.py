"""Stores of gradients whose files were changed and sealed again: refused by what is wrong with them."""

from __future__ import annotations

import json
import shutil

import pytest
from spoiling import changed_json

from ghostgrad.store import SEALED, _digest
from ghosttune.choosing.attribute import attribute
from ghosttune.choosing.index import index
from ghosttune.choosing.neighbours import dedupe
from ghosttune.choosing.opened import OpenedRun
from ghosttune.errors import RunError

DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def opened(finished, tmp_path_factory):
    """The run with a store of sketches."""
    run = tmp_path_factory.mktemp("indexed") / "run"
    shutil.copytree(finished, run)
    index(run, kind="standard@1", device="cpu")
    return OpenedRun(run, "cpu")


@pytest.fixture
def store(opened, tmp_path):
    """The store's folder, to spoil; it is mended afterwards."""
    (folder,) = (opened.run.path / "store" / "train").iterdir()
    shutil.copytree(folder, tmp_path / "whole")
    opened._verified.clear()
    yield folder
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "whole", folder)


def sealed_again(store, **changes):
    digests = {name: _digest(store / name) for name in SEALED if (store / name).exists()}
    changed_json(store / "seal.json", **{"sha256": digests, **changes})


def refused(opened, *words):
    with pytest.raises(RunError) as caught:
        attribute(opened, prompt="Say red", completion="red")
    assert any(word in str(caught.value) for word in words), str(caught.value)
    assert len(str(caught.value)) < 3000


MANIFESTS = {
    "size as text": {"size": "8"},
    "size below one": {"size": 0},
    "negative size": {"size": -8},
    "size of half a number": {"size": 8.5},
    "size true": {"size": True},
    "size beyond everything": {"size": 10**30},
    "another size": {"size": 3},
    "dtype unknown": {"dtype": "float64"},
    "dtype a list": {"dtype": ["float32"]},
    "another dtype": {"dtype": "float32"},
    "meaning missing": {"meaning": None},
    "meaning a list": {"meaning": [1]},
    "format": {"format": "1"},
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_was_changed_and_sealed_again(opened, store, name):
    changed_json(store / "manifest.json", **MANIFESTS[name])
    sealed_again(store)
    refused(opened, "is damaged")


OPTIONS = {
    "none": None,
    "a list": [1],
    "size as text": {"size": "256"},
    "layers as text": {"layers": "abc"},
    "layers of numbers": {"layers": [1]},
    "layers that match nothing": {"layers": ["nothing"]},
    "dtype unknown": {"dtype": "Tensor"},
    "dtype a number": {"dtype": 5},
    "kind": {"kind": "other"},
    "side": {"side": 0},
    "seed": {"seed": -1},
    "one more": {"more": 1},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_sketch_of_other_options(opened, store, name):
    manifest = json.loads((store / "manifest.json").read_text())
    sketch, change = manifest["meaning"]["sketch"], OPTIONS[name]
    sketch["options"] = sketch["options"] | change if isinstance(change, dict) else change
    (store / "manifest.json").write_text(json.dumps(manifest))
    sealed_again(store)
    refused(opened, "is damaged", "another meaning")


@pytest.mark.parametrize("text", ["", "5", "[]", "null", DEEP, "\0"])
@pytest.mark.parametrize("file", ["manifest.json", "seal.json"])
def test_a_file_that_holds_something_else(opened, store, file, text):
    (store / file).write_text(text)
    if file == "manifest.json":
        sealed_again(store)
    refused(opened, "is damaged")


@pytest.mark.parametrize("name", ["twice", "fewer", "others", "not text"])
def test_other_ids(opened, store, name):
    path = store / "ids.txt"
    ids = path.read_bytes().splitlines(keepends=True)
    changed = {
        "twice": [ids[0], ids[0], *ids[2:]],
        "fewer": ids[:-1],
        "others": [b"x" + line for line in ids],
        "not text": [b"\xff" + line for line in ids],
    }
    path.write_bytes(b"".join(changed[name]))
    sealed_again(store)
    with pytest.raises(RunError, match=r"is damaged|does not hold"):
        dedupe(opened)


@pytest.mark.parametrize("change", [-1, 1])
def test_rows_of_another_size(opened, store, change):
    path = store / "rows.bin"
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + b"\0")
    sealed_again(store)
    refused(opened, "rows.bin has")


@pytest.mark.parametrize("notes", [None, [], {}, {"error": 5}, {"error": {"cosine": "a"}}, {"error": {}}])
def test_other_notes(opened, store, notes):
    sealed_again(store, notes=notes)
    refused(opened, "is damaged")


def test_index_says_so_too(opened, store):
    changed_json(store / "manifest.json", size="8")
    sealed_again(store)
    with pytest.raises(RunError, match=r"size is '8'; it must be a whole number"):
        index(opened.run.path, kind="standard@1", device="cpu")


def test_a_store_that_was_only_sealed_again_is_read(opened, store):
    sealed_again(store)
    assert attribute(opened, prompt="Say red", completion="red").rows
