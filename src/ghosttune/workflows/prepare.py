"""From a configuration to everything that training needs except the model: rows, splits, features, plan."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ghosttune.config.resolve import Facts, resolve_sources, resolve_steps
from ghosttune.config.schema import RunConfig, SourceSettings
from ghosttune.data.encoding import Collator, Encoded, Encoder
from ghosttune.data.records import Record
from ghosttune.data.sources import Source, open_source, read_source, refuse_repeated, source_files
from ghosttune.data.splitting import sample, shared_groups, split_off
from ghosttune.data.templates import Template
from ghosttune.errors import ConfigError, DataError, listed
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

    @property
    def metadata_columns(self) -> list[str]:
        """Columns that no format needed: kept beside the rows, never shown to the model."""
        return sorted({name for record in self.train_records for name in record.metadata})


def prepare(config: RunConfig) -> Prepared:
    """Reads, splits and encodes the rows of a run; raises ConfigError, DataError or ModelError, and writes nothing."""
    _require_trackers(config)
    tokenizer = load_tokenizer(config.model)
    source = open_source(config.data.train)
    config = resolve_sources(config, _facts(source, tokenizer))
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
    """(train, dev, rows left out by reason), disjoint by id and by prompt.

    `data.train.limit` is applied before a `fraction` is drawn, so that it bounds the rows of both.
    """
    seed, dev = config.train.seed, config.data.dev
    own = [record for record in source.records if record.split in (None, "train")]
    kept = sample(own, config.data.train.limit, seed)
    left_out = {"beyond data.train.limit": len(own) - len(kept)}
    for split in source.splits:
        if split not in ("train", dev.split):
            count = sum(record.split == split for record in source.records)
            left_out[f"split {split} is not used for training"] = count
    if dev_source is not None:
        judges = dev_source.records
    elif dev.split is not None:
        judges = [record for record in source.records if record.split == dev.split]
    else:
        kept, judges = split_off(kept, dev.fraction or 0.0, seed, "dev")
    dev_records = sample(judges, dev.limit, seed)
    left_out["beyond data.dev.limit"] = len(judges) - len(dev_records)
    if not kept:
        raise DataError("no training rows: the source's rows all belong to other splits")
    refuse_repeated(record.example_id for record in [*kept, *judges])
    shared = shared_groups(judges, kept)
    if shared:
        raise DataError(
            f"{len(shared)} training rows ask the same as a dev row ({listed(shared, 5)}), so that dev would reward "
            "memory; remove them from one of the two, or let data.dev.fraction draw the dev rows"
        )
    return kept, dev_records, {reason: count for reason, count in left_out.items() if count}


def _require_trackers(config: RunConfig) -> None:
    missing = [name for name in config.run.trackers if find_spec(name) is None]
    if missing:
        message = f"{', '.join(missing)} is not installed: pip install 'ghosttune[track]', or take it off the list"
        raise ConfigError([config.problem("run.trackers", message)])


def _facts(source: Source, tokenizer: Any) -> Facts:
    import torch

    return Facts(
        cuda_devices=torch.cuda.device_count(),
        source_splits=source.splits,
        row_format=source.row_format,
        has_chat_template=bool(getattr(tokenizer, "chat_template", None)),
        holds_conversations=source.has_turns,
        holds_lone_turns=source.has_lone_turns,
    )


def _dev_source(config: RunConfig) -> Source | None:
    """The rows of `data.dev.path`, one file, named and read like the training rows."""
    path = config.data.dev.path
    if path is None:
        return None
    if Path(path).is_dir():
        raise DataError(f"data.dev.path {path} is a folder; give the file that holds the dev rows")
    train = config.data.train
    settings = SourceSettings(path=path, format=train.format, columns=train.columns)
    try:
        (file,) = source_files(Path(path)).values()
        return read_source({"dev": file}, settings)
    except DataError as error:
        raise DataError(f"data.dev.path: {error}") from error


def _padding_token(tokenizer: Any) -> int:
    """Any token serves, padding is recognised by position; 0 where the tokenizer names none."""
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


def default_run_folder(config: RunConfig, now: str) -> Path:
    """Where a run without --out goes: `run.name`, or data, model, method and time, below `run.root`."""
    train = config.data.train
    data = train.name or Path(train.path or "").name.split(".")[0].replace("builtin:", "builtin-")
    model = Path(config.model.name).name.replace("builtin:", "")
    return Path(config.run.root) / (config.run.name or f"{data}-{model}-{config.method.type}-{now}")
