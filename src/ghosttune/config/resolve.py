"""Values that follow from others: pure functions from a configuration and facts to the configuration that runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ghosttune.config.checking import conflicts
from ghosttune.config.loading import with_values
from ghosttune.config.schema import RunConfig
from ghosttune.config.sections.data import MixedSettings
from ghosttune.errors import ConfigError, Problem, listed

DEV_FRACTION, GUIDE_FRACTION = 0.1, 0.05

CONVERSATION = r'{"text": "User: …\nAssistant: …"}'


@dataclass(frozen=True)
class Facts:
    """What a configuration alone cannot know."""

    cuda_devices: int = 0
    source_splits: tuple[str, ...] = ()
    """Splits the training source itself has, such as ("train", "dev")."""
    row_format: str = "prompt_completion"
    """Format the training rows are written in."""
    has_template: bool = True
    """Whether the task renders its rows through a template."""
    device_has_bfloat16: bool = True
    """Whether the device computes in bfloat16 itself."""
    has_chat_template: bool = False
    """Whether the model's tokenizer has a chat template."""
    holds_conversations: bool = False
    """Whether rows written as text are conversations, by their User:/Assistant: marks."""
    source_formats: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of a mixture: the format of each source's rows, by its name."""
    plain_sources: tuple[str, ...] = ()
    """Sources of a mixture whose rows are text without answers."""
    lacking_dev: tuple[str, ...] = ()
    """Sources of a mixture that have no split dev where others have one."""
    holds_lone_turns: bool = False
    """Whether rows written as text begin with such a mark and are one side of a conversation."""


Refuse = Callable[[Sequence[Problem]], None]
"""What becomes of problems; none of them leaves a value undecided, so that a collector can look further."""


def refuse(problems: Sequence[Problem]) -> None:
    """ConfigError when there are any."""
    if problems:
        raise ConfigError(problems)


def resolve_sources(config: RunConfig, facts: Facts, refuse: Refuse = refuse) -> RunConfig:
    """The configuration with device, row format, template and dev source decided; ConfigError if they cannot be had."""
    derived: dict[str, Any] = {}
    if config.model.device == "auto":
        derived["model.device"] = "cuda" if facts.cuda_devices else "cpu"
    if config.data.train.sources is not None:
        config = with_values(config, {"data.train.sources": _formatted(config.data.train.sources, facts)})
    elif config.data.train.format == "auto" and config.data.train.name is None:
        derived["data.train.format"] = facts.row_format
    if config.data.template == "auto" and facts.has_template:
        conversations = facts.row_format == "messages" or facts.holds_conversations
        derived["data.template"] = "chat" if facts.has_chat_template else "turns" if conversations else "plain"
    dev = config.data.dev
    undecided = dev.fraction is None and dev.split is None and dev.path is None and dev.sources is None
    if undecided:
        has_dev = "dev" in facts.source_splits
        derived |= {"data.dev.split": "dev"} if has_dev else {"data.dev.fraction": DEV_FRACTION}
    guide = config.data.guide
    undecided_guide = guide.fraction is None and guide.split is None and guide.path is None
    if config.measure.ledger.guide_every is not None and undecided_guide:
        if "guide" in facts.source_splits and config.data.dev.split != "guide":
            derived["data.guide.split"] = "guide"
        elif guide.rows is None:
            derived["data.guide.fraction"] = GUIDE_FRACTION
    config = with_values(config, derived, "derived")
    problems = [
        *(_dev_problems(config, facts) if undecided else []),
        *_device_problems(config, facts),
        *_template_problems(config, facts),
        *_split_problems(config, facts),
        *conflicts(config),
        *_loss_problems(config, facts),
    ]
    refuse(problems)
    return config


def resolve_steps(config: RunConfig, train_rows: int, processes: int = 1, refuse: Refuse = refuse) -> RunConfig:
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
    refuse(conflicts(config))
    return config


def steps_per_epoch(config: RunConfig, train_rows: int, processes: int = 1) -> int:
    """Optimizer updates of one pass over the rows, the last of which may hold fewer rows.

    Those with all of their rows are made several times where the task says so.
    """
    rows = config.train.per_device_train_batch_size * config.data.online_selection.offered * processes
    micro_batches = math.ceil(train_rows / rows)
    full = train_rows // (rows * config.train.gradient_accumulation_steps)
    return math.ceil(micro_batches / config.train.gradient_accumulation_steps) + full * (config.task.repeats - 1)


def _formatted(sources: Mapping[str, MixedSettings], facts: Facts) -> dict[str, MixedSettings]:
    """The sources of a mixture with the formats that were found."""
    return {
        name: source if source.name else source.model_copy(update={"format": facts.source_formats[name]})
        for name, source in sources.items()
    }


def _device_problems(config: RunConfig, facts: Facts) -> list[Problem]:
    device = config.model.device
    if config.model.dtype == "bfloat16" and not facts.device_has_bfloat16:
        message = f"is bfloat16, which {device} does not compute in; use float32"
        return [config.problem("model.dtype", message)]
    if device == "cpu" or int(device.partition(":")[2] or 0) < facts.cuda_devices:
        return []
    found = f"{facts.cuda_devices or 'no'} CUDA device{'s' if facts.cuda_devices != 1 else ''}"
    remedy = "cpu, or install a CUDA build of torch" if not facts.cuda_devices else "cuda:N below that number, or cpu"
    return [config.problem("model.device", f"{device} was asked for and torch sees {found}; use {remedy}")]


def _dev_problems(config: RunConfig, facts: Facts) -> list[Problem]:
    if not facts.lacking_dev:
        return []
    message = (
        f"must be chosen: {listed(facts.lacking_dev)} of the mixture has no split dev, and others have one. "
        "data.dev.fraction sets rows of every source aside, data.dev.split: dev judges by the sources that have it"
    )
    return [config.problem("data.dev", message)]


def _template_problems(config: RunConfig, facts: Facts) -> list[Problem]:
    if not facts.has_template:
        idle = {
            "model.chat_template": config.model.chat_template is None,
            "data.template": config.data.template == "auto",
            "data.loss_on": config.data.loss_on == "completion",
        }
        message = f"means nothing for {config.task.type}, which renders no prompts; leave it out"
        return [config.problem(setting, message) for setting, is_default in idle.items() if not is_default]
    if config.data.template != "chat" and config.model.chat_template is not None:
        message = f"is named, and data.template: {config.data.template} does not read it; leave one of the two out"
        return [config.problem("model.chat_template", message)]
    if config.data.template != "chat" or facts.has_chat_template:
        return []
    message = (
        f"is chat, and the tokenizer of {config.model.name} has no chat template; name one with model.chat_template, "
        "or use turns or plain"
    )
    return [config.problem("data.template", message)]


def _split_problems(config: RunConfig, facts: Facts) -> list[Problem]:
    have = ", ".join(facts.source_splits) or "no splits of its own"
    others = {"dev": "data.dev.fraction or data.dev.path", "guide": "data.guide.fraction or data.guide.rows"}
    chosen = {"dev": config.data.dev.split, "guide": config.data.guide.split}
    return [
        config.problem(
            f"data.{purpose}.split",
            f"{split!r} is not a split of the training source, which has {have}; use {others[purpose]}",
        )
        for purpose, split in chosen.items()
        if split is not None and split not in facts.source_splits
    ]


def _loss_problems(config: RunConfig, facts: Facts) -> list[Problem]:
    if config.data.loss_on == "completion" and facts.plain_sources:
        message = f"must be all: rows of {listed(facts.plain_sources)} are plain text, with no completion of their own"
        return [config.problem("data.loss_on", message)]
    if config.data.loss_on == "all" or facts.row_format != "text" or facts.holds_conversations:
        return []
    message = "must be all for rows of plain text: they have no completion of their own"
    if facts.holds_lone_turns:
        message += (
            ". Rows begin with User: or Assistant: and hold one side each: a conversation is one row (each line of a "
            f".txt file is a row of its own), in a .jsonl file a line such as {CONVERSATION}"
        )
    return [config.problem("data.loss_on", message)]
