"""Hub ids: loaded by `datasets` with nothing but columns, refused with what to do where they cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from published import write

from ghosttune.config.loading import load_config
from ghosttune.config.sections.data import SourceSettings
from ghosttune.data.sources import Source, open_source
from ghosttune.errors import ConfigError, DataError

TRAIN = [{"q": "Who?", "a": "Ann", "kind": 0}, {"q": "Où ?", "a": "Ici", "kind": 1}]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A hub that holds one dataset, read by the real library from files; returns what was asked for."""
    import datasets

    folder = tmp_path / "files"
    folder.mkdir()
    write(folder / "a-train.jsonl", TRAIN)
    write(folder / "b-validation.jsonl", [{"q": "When?", "a": "Now", "kind": 0}])
    write(folder / "c-unlabelled.jsonl", [{"q": "Why?", "a": "", "kind": 0}] * 3)
    real, asked = datasets.load_dataset, []

    def load(repository: str, configuration: str | None, revision: str | None) -> Any:
        asked.append((repository, configuration, revision))
        files = {path.stem[2:]: str(path) for path in sorted(folder.iterdir())}
        return real("json", data_files=files, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def opened(name: str, **settings: Any) -> Source:
    return open_source(SourceSettings(name=name, **settings))


def test_a_hub_id_needs_no_code_only_columns(hub: list[Any]) -> None:
    source = opened("org/name:small@abc123", columns={"prompt": "q", "completion": "a"})
    assert hub == [("org/name", "small", "abc123")]
    assert [(record.prompt[0].content, record.reference, record.split) for record in source.records] == [
        ("Who?", "Ann", "train"),
        ("Où ?", "Ici", "train"),
        ("When?", "Now", "dev"),
    ]
    assert source.records[1].metadata == {"kind": 1} and source.records[1].place == "org/name:small@abc123 train[1]"
    assert source.dropped == {"split unlabelled of the hub": 3}
    assert opened("org/name", columns={"prompt": "q", "completion": "a"}).fingerprints.keys() == {
        "org/name train",
        "org/name validation",
    }


def test_its_columns_are_shown_when_they_fit_no_format(hub: list[Any]) -> None:
    with pytest.raises(DataError, match=r"columns a, kind, q, split \(first row, org/name train\[0\]\) fit no format"):
        opened("org/name")


def test_without_a_network_it_says_what_to_do() -> None:
    with pytest.raises(DataError) as caught:
        opened("no-such-organisation/dataset")
    for said in ("cannot be had from the hub", "HF_HOME", "org/name:configuration", "data.train.path"):
        assert said in str(caught.value)


def test_a_folder_of_that_name_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"org/name is a hub id and also lies here; give data\.train\.path"):
        opened("org/name")


@pytest.mark.parametrize("name", ["a/b/c", "/b", "a/", "a/b:", "a/b@", "a b/c"])
def test_what_is_no_hub_id_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="is not a hub id: org/name"):
        opened(name)


def test_a_path_beside_a_hub_id_does_nothing() -> None:
    with pytest.raises(ConfigError, match=r"data\.train\.path: does nothing for the hub id org/name"):
        load_config(overrides=["data.train.name=org/name", "data.train.path=rows.jsonl"])
    chosen = ["data.train.name=org/name", "data.train.columns={prompt: q}", "data.train.format=prompt_completion"]
    config = load_config(overrides=[*chosen, "data.train.path=null"])
    assert config.data.train.columns == {"prompt": "q"}
