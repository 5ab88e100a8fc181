"""From a configuration to everything that training needs except the model: rows, splits, features, plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ghosttune.config.resolve import Facts, resolve_sources, resolve_steps
from ghosttune.config.schema import RunConfig, SourceSettings
from ghosttune.data.encoding import Collator, Encoded, Encoder
from ghosttune.data.records import Record
from ghosttune.data.sources import Source, open_source
from ghosttune.data.splitting import sample, shared_groups, split_off
from ghosttune.data.templates import Template
from ghosttune.errors import DataError, listed
from ghosttune.models.loading import load_tokenizer


@dataclass(frozen=True)
class Prepared:
    """A resolved configuration with its rows as features."""

    config: RunConfig
    encoder: Encoder
    collator: Collator
    train_records: list[Record]
    dev_records: list[Record]
    train: Encoded
    dev: Encoded
    fingerprints: dict[str, str]
    left_out: dict[str, int]
    """Rows of the source that this run does not use, by reason."""


def prepare(config: RunConfig) -> Prepared:
    """Reads, splits and encodes the rows of a run; raises ConfigError, DataError or ModelError, and writes nothing."""
    tokenizer = load_tokenizer(config.model)
    source = open_source(config.data.train)
    has_chat_template = bool(getattr(tokenizer, "chat_template", None))
    facts = Facts(_cuda_devices(), source.splits, _row_format(source), has_chat_template)
    config = resolve_sources(config, facts)
    dev_source = _dev_source(config)
    train_records, dev_records, left_out = split_records(config, source, dev_source)
    config = resolve_steps(config, len(train_records))
    encoder = Encoder(Template(config.data.template, tokenizer), config.data.max_length, config.data.loss_on)
    return Prepared(
        config=config,
        encoder=encoder,
        collator=Collator(_padding_token(tokenizer)),
        train_records=train_records,
        dev_records=dev_records,
        train=encoder.encode(train_records, config.data.truncated_share),
        dev=encoder.encode(dev_records, config.data.truncated_share),
        fingerprints=source.fingerprints | (dev_source.fingerprints if dev_source else {}),
        left_out=left_out,
    )


def split_records(
    config: RunConfig, source: Source, dev_source: Source | None
) -> tuple[list[Record], list[Record], dict[str, int]]:
    """(train, dev, rows left out by reason), disjoint by id and by prompt."""
    seed, dev = config.train.seed, config.data.dev
    own = [record for record in source.records if record.split in (None, "train")]
    left_out = {
        f"split {split} is not used for training": count
        for split in source.splits
        if split not in ("train", dev.split) and (count := sum(record.split == split for record in source.records))
    }
    if dev_source is not None:
        dev_records = [replace(record, split=None) for record in dev_source.records]
    elif dev.split is not None:
        dev_records = [record for record in source.records if record.split == dev.split]
    else:
        own, dev_records = split_off(own, dev.fraction or 0.0, seed, "dev")
    if not own:
        raise DataError("no training rows: the source's rows all belong to other splits")
    shared = shared_groups(dev_records, own)
    if shared:
        raise DataError(
            f"{len(shared)} training rows ask the same as a dev row ({listed(shared, 5)}), so that dev would reward "
            "memory; remove them from one of the two, or let data.dev.fraction draw the dev rows"
        )
    train, kept_dev = sample(own, config.data.train.limit, seed), sample(dev_records, dev.limit, seed)
    left_out |= {
        reason: count
        for reason, count in (
            ("beyond data.train.limit", len(own) - len(train)),
            ("beyond data.dev.limit", len(dev_records) - len(kept_dev)),
        )
        if count
    }
    return train, kept_dev, left_out


def _dev_source(config: RunConfig) -> Source | None:
    if config.data.dev.path is None:
        return None
    train = config.data.train
    settings = SourceSettings(path=config.data.dev.path, format=train.format, columns=train.columns)
    return open_source(settings)


def _row_format(source: Source) -> str:
    """`messages` as soon as any row is a conversation, so that text rows with User:/Assistant: marks count as such."""
    if source.row_format == "text" and any(record.turns[0].role != "text" for record in source.records):
        return "messages"
    return source.row_format


def _padding_token(tokenizer: Any) -> int:
    """Any token serves, padding is recognised by position; 0 where the tokenizer names none."""
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


def _cuda_devices() -> int:
    import torch

    return torch.cuda.device_count()


def default_run_folder(config: RunConfig, now: str) -> Path:
    """Where a run without --out goes: `run.name`, or data, model, method and time, below `run.root`."""
    train = config.data.train
    data = train.name or Path(train.path or "").name.split(".")[0].replace("builtin:", "builtin-")
    model = Path(config.model.name).name.replace("builtin:", "")
    return Path(config.run.root) / (config.run.name or f"{data}-{model}-{config.method.type}-{now}")
