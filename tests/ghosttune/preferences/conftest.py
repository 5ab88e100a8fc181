"""Small models, and rows of preferences as features, without files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from small_llama import small_adapted_llama

from ghosttune.config.sections.data import DataSettings
from ghosttune.data.pairing import PreferenceCollator, PreferenceFeatures
from ghosttune.registry import TASKS

# (prompt, answers) in tokens; unequal, so that there is padding on either side
LENGTHS = [(5, (3, 6)), (2, (4, 4)), (7, (1, 5)), (3, (2, 9))]
VOCABULARY = 23


@pytest.fixture
def adapted() -> Any:
    return small_adapted_llama(VOCABULARY)


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
