"""Small models, and rows of preferences as features, without files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_llama import small_llama

from ghosttune.config.sections import DataSettings
from ghosttune.data.pairing import PreferenceCollator, PreferenceFeatures
from ghosttune.registry import TASKS

# (prompt, answers) in tokens; unequal, so that there is padding on either side
LENGTHS = [(5, (3, 6)), (2, (4, 4)), (7, (1, 5)), (3, (2, 9))]
VOCABULARY = 23


@pytest.fixture
def adapted() -> Any:
    """A model of two layers in float64 with LoRA, its B away from 0."""
    import peft

    torch.manual_seed(0)
    base = small_llama(VOCABULARY, num_hidden_layers=2, hidden_size=16, intermediate_size=24).double()
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, dtype=torch.float64) * 0.2
    return model


@pytest.fixture
def task() -> Callable[..., Any]:
    """(loss, settings) -> the task."""

    def build(loss: str, **settings: Any) -> Any:
        entry = TASKS["preference"]
        return entry.build(entry.settings(loss=loss, **settings))

    return build


@pytest.fixture
def rows() -> Callable[..., list[PreferenceFeatures]]:
    """sides of each row -> features with random tokens."""

    def make(*sides: tuple[int, ...]) -> list[PreferenceFeatures]:
        random = np.random.default_rng(1)
        found = []
        for index, (own, (prompt, answers)) in enumerate(zip(sides, LENGTHS, strict=True)):
            asked = random.integers(3, VOCABULARY, prompt)
            sequences = [np.r_[asked, random.integers(3, VOCABULARY, answers[side % 2])] for side in own]
            trained = [np.arange(len(ids)) >= prompt for ids in sequences]
            lengths = tuple(map(len, sequences))
            ids = np.concatenate(sequences).astype(np.int32)
            found.append(PreferenceFeatures(index, f"row {index}", ids, np.concatenate(trained), lengths, own))
        return found

    return make


@pytest.fixture
def pairs(rows) -> list[PreferenceFeatures]:
    return rows((0, 1), (0, 1), (0, 1), (0, 1))


@pytest.fixture
def collate() -> PreferenceCollator:
    return PreferenceCollator(0)


@pytest.fixture
def data() -> DataSettings:
    return DataSettings(template="plain")
