"""Options that would do nothing beside the others, and names that no folder can have, are refused before any work."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from ghosttune.cli.main import app
from ghosttune.errors import InputError, RunError
from ghosttune.run.directory import RunDir


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("chat builtin:tiny --prompt x --top-p 0.9", "--top-p would do nothing: at --temperature 0"),
        ("chat builtin:tiny --prompt x --top-k 3 --seed 4", "--top-k, --seed would do nothing"),
        ("infer builtin:tiny --input rows.jsonl --output out.jsonl --seed 4", "--seed would do nothing"),
        ("attribute nowhere --prompt a --completion b --damping 0.1", "--damping does nothing for --by cosine"),
        ("select nowhere --keep 3 --out out.jsonl --seed 3", "--seed does nothing for a selection by value"),
        ("show methods --run nowhere", "a run can stand beside one setting"),
    ],
)
def test_an_option_without_effect_is_refused(command, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said) as caught:
        CliRunner().invoke(app, command.split(), catch_exceptions=False)
    assert caught.value.exit_code == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["odd\udcffrun", "x" * 300, "a\0b"])
def test_a_folder_that_nothing_could_name_is_refused_before_training(name, tmp_path):
    with pytest.raises(RunError, match="cannot be the name of a folder here"):
        RunDir(tmp_path / name)


def test_strict_judges_settings_that_resuming_does_not_take(tmp_path):
    result = CliRunner().invoke(app, ["train", "--resume", "--strict", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "continues a run with its own config.yaml" in result.output
