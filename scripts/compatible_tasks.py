"""The tasks that families are tried with: models loaded as a run loads them, and four rows of unequal length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from compatible_families import VOCABULARY, Family

from ghosttune.config.facts import ModelKind
from ghosttune.config.schema import section_class
from ghosttune.config.sections.model import ModelSettings
from ghosttune.data.encoding import IGNORED
from ghosttune.models.loading import load_model
from ghosttune.registry import TASKS

LENGTHS = [8, 6, 8, 5]
PAD, END = 0, 2
TOKENIZER = SimpleNamespace(pad_token_id=PAD, eos_token_id=END)


@dataclass(frozen=True)
class Tried:
    """A task with its settings."""

    name: str
    settings: dict[str, Any]

    @property
    def task(self) -> Any:
        return TASKS[self.name].build(section_class("task", self.name)(**self.settings))

    @property
    def kind(self) -> ModelKind:
        return self.task.kind(TOKENIZER)

    def model(self, family: Family, folder: Path) -> Any:
        """The family's published weights, in `folder`, as a run of the task loads them; InputError where it cannot."""
        if not folder.exists():
            family.model().save_pretrained(folder)
        return load_model(ModelSettings(name=str(folder)), 0, self.kind).eval()

    def batch(self) -> dict[str, torch.Tensor]:
        """Rows as the task's collator makes them; each ends with the one token that ends rows."""
        random = torch.Generator().manual_seed(1)
        ids = torch.randint(3, VOCABULARY - 1, (4, 8), generator=random)
        mask = (torch.arange(8) < torch.tensor(LENGTHS)[:, None]).long()
        ids[range(4), [length - 1 for length in LENGTHS]] = END
        targets: dict[str, torch.Tensor] = {
            "causal_lm": ids.masked_fill(mask == 0, IGNORED),
            "seq2seq_lm": ids.masked_fill(mask == 0, IGNORED),
            "sequence_classification": torch.tensor([0, 1, 0, 1]),
            "token_classification": (ids % 3).masked_fill(mask == 0, IGNORED),
            "question_answering": torch.tensor([[1, 2], [3, 3], [2, 4], [0, 0]]),
        }
        name = "spans" if self.name == "question_answering" else "labels"
        return {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask, name: targets[self.name]}


TRIED = {
    name: Tried(name, settings)
    for name, settings in {
        "causal_lm": {},
        "sequence_classification": {"labels": ["0", "1"]},
        "token_classification": {"labels": ["0", "1", "2"]},
        "question_answering": {},
        "seq2seq_lm": {},
    }.items()
}
"""Regression has the models of sequence classification."""
