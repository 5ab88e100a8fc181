"""The same run in two processes, whose sets have another order each, leaves the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ghosttune.config.rendering import plain_yaml

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.slow(seconds=15)
def test_whatever_the_seed_of_hashes(make_config, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from chaos import differences

    config = tmp_path / "run.yaml"
    config.write_text(plain_yaml(make_config(measure__ledger__guide_every=3, data__guide__rows=4)))
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        for command in (["train", str(config), "--out", "run"], ["index", "run"]):
            done = subprocess.run(
                [sys.executable, "-m", "ghosttune", *command],
                cwd=tmp_path / seed,
                env=os.environ | {"PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                timeout=1000,
            )
            assert done.returncode == 0, done.stdout + done.stderr
    assert differences(tmp_path / "1", tmp_path / "2") == []


@pytest.mark.parametrize("init", ["default", "pissa"])
def test_an_adapter_names_its_modules_in_order(make_config, tiny_model, tmp_path, init):
    """Of seven names, by chance once in 5,040."""
    from ghosttune.models.loading import add_adapter, load_model, save_adapter

    config = make_config(method__init_lora_weights=init) if init != "default" else make_config()
    model = add_adapter(load_model(config.model, 0), config.method, 0)
    save_adapter(model, tmp_path / "adapter")
    names = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert names == sorted(names) and len(names) >= 7
    assert isinstance(model.peft_config["default"].target_modules, set), "as PEFT wants it while it trains"
