"""Values that follow from others: pure functions from a configuration and facts to the configuration that runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ghosttune.config.checking import conflicts
from ghosttune.config.loading import with_values
from ghosttune.config.schema import RunConfig
from ghosttune.errors import ConfigError, Problem

DEV_FRACTION = 0.1


@dataclass(frozen=True)
class Facts:
    """What a configuration alone cannot know."""

    cuda_devices: int = 0
    source_splits: tuple[str, ...] = ()
    """Splits the training source itself has, such as ("train", "dev")."""
    row_format: str = "prompt_completion"
    """Detected format of the training rows."""
    has_chat_template: bool = False
    """Whether the model's tokenizer has a chat template."""


def resolve_sources(config: RunConfig, facts: Facts) -> RunConfig:
    """The configuration with device, row format, template and dev source decided; ConfigError when they cannot be had."""
    derived: dict[str, Any] = {}
    if config.model.device == "auto":
        derived["model.device"] = "cuda" if facts.cuda_devices else "cpu"
    if config.data.train.format == "auto" and config.data.train.name is None:
        derived["data.train.format"] = facts.row_format
    if config.data.template == "auto":
        turns = "turns" if facts.row_format == "messages" else "plain"
        derived["data.template"] = "chat" if facts.has_chat_template else turns
    if config.data.dev.fraction is None and config.data.dev.split is None and config.data.dev.path is None:
        has_dev = "dev" in facts.source_splits
        derived |= {"data.dev.split": "dev"} if has_dev else {"data.dev.fraction": DEV_FRACTION}
    config = with_values(config, derived, "derived")
    problems = [*_device_problems(config, facts), *_template_problems(config, facts), *_split_problems(config, facts)]
    if problems:
        raise ConfigError(problems)
    return config


def resolve_steps(config: RunConfig, train_rows: int, processes: int = 1) -> RunConfig:
    """The configuration with the run's length and intervals as numbers of steps; ConfigError when they do not fit."""
    train = config.train
    derived: dict[str, Any] = {}
    steps = train.max_steps
    if steps is None:
        per_epoch = steps_per_epoch(config, train_rows, processes)
        steps = max(1, math.ceil((train.num_train_epochs or 1) * per_epoch))
        derived |= {"train.max_steps": steps, "train.num_train_epochs": None}
    if train.logging_steps is None:
        derived["train.logging_steps"] = max(1, steps // 50)
    eval_steps = train.eval_steps or max(1, steps // 10)
    if train.eval_steps is None:
        derived["train.eval_steps"] = eval_steps
    if train.save_steps is None:
        derived["train.save_steps"] = eval_steps
    config = with_values(config, derived, "derived")
    if problems := conflicts(config):
        raise ConfigError(problems)
    return config


def steps_per_epoch(config: RunConfig, train_rows: int, processes: int = 1) -> int:
    """Optimizer updates of one pass over the rows, the last of which may hold fewer rows."""
    micro_batches = math.ceil(train_rows / (config.train.per_device_train_batch_size * processes))
    return math.ceil(micro_batches / config.train.gradient_accumulation_steps)


def _device_problems(config: RunConfig, facts: Facts) -> list[Problem]:
    device = config.model.device
    if device == "cpu":
        return []
    number = int(device.partition(":")[2] or 0)
    if number < facts.cuda_devices:
        return []
    found = f"{facts.cuda_devices} CUDA device{'s' if facts.cuda_devices != 1 else ''}"
    message = f"{device} was asked for and torch sees {found}; use cpu, or install a CUDA build of torch"
    return [Problem("model.device", message, config.origins.get("model.device", ""))]


def _template_problems(config: RunConfig, facts: Facts) -> list[Problem]:
    if config.data.template == "chat" and not facts.has_chat_template:
        message = f"is chat, and the tokenizer of {config.model.name} has no chat template; use turns or plain"
        return [Problem("data.template", message, config.origins.get("data.template", ""))]
    return []


def _split_problems(config: RunConfig, facts: Facts) -> list[Problem]:
    split = config.data.dev.split
    if split is None or split in facts.source_splits:
        return []
    have = ", ".join(facts.source_splits) or "no splits of its own"
    message = (
        f"{split!r} is not a split of the training source, which has {have}; use data.dev.fraction or data.dev.path"
    )
    return [Problem("data.dev.split", message, config.origins.get("data.dev.split", ""))]
