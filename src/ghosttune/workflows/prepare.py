"""From a configuration to everything that training needs except the model: rows, splits, features, plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ghosttune.config.loading import value_at, with_values
from ghosttune.config.resolve import Facts, Refuse, refuse, resolve_sources, resolve_steps
from ghosttune.config.schema import RunConfig
from ghosttune.config.sections import EVALUATION_FILES, SourceSettings
from ghosttune.data.encoding import Encoded, Encoder, RowEncoder
from ghosttune.data.files import fingerprint
from ghosttune.data.hub import is_hub_id
from ghosttune.data.images import ImageEncoder, ImageReader, image_of
from ghosttune.data.questions import questions_of
from ghosttune.data.records import Records
from ghosttune.data.selecting import ids_in
from ghosttune.data.sources import Source, open_source, read_source, refuse_repeated, source_files
from ghosttune.data.splitting import sample, shared_groups, split_off, split_off_rows
from ghosttune.data.stored import Stored
from ghosttune.data.templates import Template
from ghosttune.errors import DataError, Problem, TooFewRows, listed
from ghosttune.metrics.judging import labels_of
from ghosttune.models.loading import has_bfloat16, load_processor, load_tokenizer
from ghosttune.registry import TASKS
from ghosttune.run.directory import RunDir
from ghosttune.training.processes import processes


@dataclass(frozen=True)
class Prepared:
    """A resolved configuration with its rows as features."""

    config: RunConfig
    task: Any
    encoder: RowEncoder
    collator: Any
    train_records: Records
    dev_records: Records
    guide_records: Records
    dev_pool: Records
    """The dev rows with those beyond data.dev.limit: further references of the same prompts."""
    test_records: Records
    """Rows of the source's own test split, which this run does not touch."""
    train: Encoded
    dev: Encoded
    guide: Encoded
    """Empty when there is no ledger."""
    fingerprints: dict[str, str]
    left_out: dict[str, int]
    """Rows of the source that this run does not use, by reason."""

    @property
    def template(self) -> Template | None:
        """What renders prompts; None where the task has none."""
        return self.encoder.template if isinstance(self.encoder, Encoder) else None

    @property
    def metadata_columns(self) -> list[str]:
        """Columns that no format needed: kept beside the rows, never shown to the model."""
        return sorted({name for record in self.train_records for name in record.metadata})


def task_of(config: RunConfig) -> Any:
    """The task that the configuration chooses, with its settings."""
    return TASKS[config.task.type].build(config.task)


def prepare(config: RunConfig, without: Collection[str] = (), refuse: Refuse = refuse) -> Prepared:
    """Reads, splits and encodes the rows of a run; raises ConfigError, DataError or ModelError, and writes nothing.

    `without` are places of rows to pass over, and `refuse` is told of settings that cannot be followed.
    """
    refuse([*_tracker_problems(config), *_evaluation_file_problems(config)])
    tokenizer = load_tokenizer(config.model)
    task = task_of(config)
    refuse(_format_problems(config, task))
    source = source_of(config, tokenizer, without)
    config = resolve_sources(config, _facts(config, source, tokenizer), refuse)
    dev_source = dev_source_of(config, tokenizer, without)
    drawn = split_records(config, source, dev_source)
    derived = {f"task.{name}": value for name, value in task.derived(drawn.train).items()}
    config = with_values(config, derived, "derived")
    task = task_of(config)
    refuse(_image_problems(config, drawn) or _metric_problems(config, drawn))
    encoder = task.encoder(tokenizer, config.data)
    if source.records.have_images or (dev_source is not None and dev_source.records.have_images):
        encoder = ImageEncoder(encoder, ImageReader(load_processor(config.model)))
    train, dev, guide = (
        encoder.encode(records, config.data.truncated_share) for records in (drawn.train, drawn.dev, drawn.guide)
    )
    left_out = Counter(drawn.left_out)
    for split in (train, dev, guide):
        left_out.update(split.left_out)
    return Prepared(
        config=resolve_steps(config, len(train), processes(), refuse),
        task=task,
        encoder=encoder,
        collator=encoder.collator(),
        train_records=drawn.train,
        dev_records=drawn.dev,
        guide_records=drawn.guide,
        dev_pool=drawn.dev_pool,
        test_records=source.records.of_split("test"),
        train=train,
        dev=dev,
        guide=guide,
        fingerprints=source.fingerprints | (dev_source.fingerprints if dev_source else {}) | _keep_fingerprint(config),
        left_out=dict(left_out),
    )


@dataclass(frozen=True)
class Drawn:
    """Which rows do what; disjoint by id and by prompt."""

    train: Records
    dev: Records
    guide: Records
    dev_pool: Records
    left_out: dict[str, int]
    """Rows of the source that the run does not use, by reason."""


def split_records(config: RunConfig, source: Source, dev_source: Source | None) -> Drawn:
    """The rows that train, those that choose checkpoints and those that give the held-out gradient.

    `data.train.limit` is applied before a `fraction` is drawn, so that it bounds the rows of all three.
    """
    seed, dev, guide = config.train.seed, config.data.dev, config.data.guide
    own = source.records.of_split(None, "train")
    if not own:
        raise TooFewRows("no training rows: the source's rows all belong to other splits")
    kept = sample(own, config.data.train.limit, seed)
    left_out = source.dropped | {"beyond data.train.limit": len(own) - len(kept)}
    for split in source.splits:
        if split not in ("train", dev.split, guide.split):
            left_out[f"split {split} is not used for training"] = len(source.records.of_split(split))
    if dev_source is not None:
        judges = dev_source.records
    elif dev.split is not None:
        judges = source.records.of_split(dev.split)
    else:
        kept, judges = split_off(kept, dev.fraction or 0.0, seed, "dev")
    dev_records = sample(judges, dev.limit, seed)
    left_out["beyond data.dev.limit"] = len(judges) - len(dev_records)
    kept, guides, cut = _guide_records(config, source, kept)
    left_out["beyond data.guide.rows"] = cut
    refuse_repeated(Stored(record.example_id for record in chain(kept, judges, guides)))
    _refuse_shared("dev", judges, kept, "dev would reward memory")
    _refuse_shared("guide", guides, kept, "the guide gradient would reward memory")
    _refuse_shared("dev", judges, guides, "the two would not judge independently", other="guide")
    if config.data.train.keep is not None:
        kept, not_kept = _named_rows(config.data.train.keep, kept, source)
        left_out |= not_kept
    return Drawn(kept, dev_records, guides, judges, {reason: count for reason, count in left_out.items() if count})


def _named_rows(path: str, rows: Records, source: Source) -> tuple[Records, dict[str, int]]:
    """(the rows whose ids stand in the file, how many are left out by which reason); DataError for unknown ids."""
    names = ids_in(Path(path))
    if unknown := sorted(names.difference(record.example_id for record in source.records)):
        raise DataError(
            f"data.train.keep {path} names {len(unknown)} rows that the data does not have: {listed(unknown, 5)}; give "
            "the data that it was selected from"
        )
    kept = rows.where(np.fromiter((record.example_id in names for record in rows), bool, len(rows)))
    if not kept:
        raise DataError(f"data.train.keep {path} names none of the {len(rows)} rows that could train")
    left_out = {
        "not in data.train.keep": len(rows) - len(kept),
        "in data.train.keep, but not among the rows that train": len(names) - len(kept),
    }
    return kept, left_out


def _guide_records(config: RunConfig, source: Source, kept: Records) -> tuple[Records, Records, int]:
    """(training rows that remain, guide rows, rows that are neither)."""
    guide, seed = config.data.guide, config.train.seed
    if guide.split is not None:
        found = source.records.of_split(guide.split)
        if guide.rows is not None and len(found) < guide.rows:
            raise DataError(
                f"data.guide.rows asks for {guide.rows} rows, and the split {guide.split} has {len(found)}; lower it"
            )
        chosen = sample(found, guide.rows, seed)
        return kept, chosen, len(found) - len(chosen)
    if guide.rows is not None:
        return split_off_rows(kept, guide.rows, seed, "guide")
    if guide.fraction is not None:
        return *split_off(kept, guide.fraction, seed, "guide"), 0
    return kept, Records.of([]), 0


def _refuse_shared(purpose: str, judges: Records, rows: Records, consequence: str, other: str = "training") -> None:
    shared = shared_groups(judges, rows)
    if shared:
        places = {record.example_id: record.place for record in rows}
        raise DataError(
            f"{len(shared)} {other} rows ask the same as a {purpose} row ({listed(shared, 5)}), so that {consequence}; "
            f"remove them from one of the two, or let data.{purpose}.fraction draw the {purpose} rows",
            {places[example_id]: f"asks the same as a {purpose} row" for example_id in shared},
        )


def _keep_fingerprint(config: RunConfig) -> dict[str, str]:
    path = config.data.train.keep
    return {} if path is None else {path: fingerprint(Path(path))}


def _format_problems(config: RunConfig, task: Any) -> list[Problem]:
    row_format = config.data.train.format
    if row_format == "auto" or row_format in task.formats:
        return []
    message = f"{row_format} is not for {config.task.type}, which reads {listed(task.formats)}"
    return [config.problem("data.train.format", message)]


def _tracker_problems(config: RunConfig) -> list[Problem]:
    missing = [name for name in config.run.trackers if find_spec(name) is None]
    message = f"{', '.join(missing)} is not installed: pip install 'ghosttune[track]', or take it off the list"
    return [config.problem("run.trackers", message)] if missing else []


def _evaluation_file_problems(config: RunConfig) -> list[Problem]:
    """The files that only the end of the run reads and that are not there."""
    files = {name: value_at(config, name) for name in EVALUATION_FILES}
    return [
        config.problem(name, f"{path} does not exist")
        for name, path in files.items()
        if path and not Path(path).exists()
    ]


def _metric_problems(config: RunConfig, drawn: Drawn) -> list[Problem]:
    """What keeps the chosen metrics from judging the dev rows, now and not after training; DataError for their rows."""
    chosen = config.evaluate.metrics
    if chosen == "auto" or config.evaluate.limit == 0 or config.task.type != "causal_lm":
        return []
    questions, _ = questions_of(drawn.dev, drawn.dev_pool, config.evaluate.limit, config.train.seed)
    if not questions:
        message = "needs dev rows with an answer, and these are plain text; leave it out"
        return [config.problem("evaluate.metrics", message)]
    labels_of([question.references for question in questions], chosen)
    return []


def _image_problems(config: RunConfig, drawn: Drawn) -> list[Problem]:
    """Answers that would be asked for at the end of the run without the images that their prompts show."""
    shown = sum(image_of(record) is not None for record in drawn.dev)
    if not shown or config.evaluate.limit == 0:
        return []
    message = (
        f"must be 0: {shown} of {len(drawn.dev)} dev rows show an image, and answers to images are not generated; the "
        "dev loss judges such a run"
    )
    return [config.problem("evaluate.limit", message)]


def require_same_data(run: RunDir, fingerprints: dict[str, str]) -> None:
    """DataError when the files of a run are not those it was started with."""
    before = run.read_record()["data"]["fingerprints"]
    changed = [name for name, digest in fingerprints.items() if before.get(name) != digest]
    if changed:
        raise DataError(f"{', '.join(changed)} changed since {run.path} was started; restore it, or start a new run")


def _facts(config: RunConfig, source: Source, tokenizer: Any) -> Facts:
    import torch

    return Facts(
        cuda_devices=torch.cuda.device_count(),
        source_splits=source.splits,
        row_format=source.row_format,
        has_template=config.task.type == "causal_lm",
        device_has_bfloat16=config.model.device == "cpu" or has_bfloat16(),
        has_chat_template=bool(getattr(tokenizer, "chat_template", None)),
        holds_conversations=source.has_turns,
        holds_lone_turns=source.has_lone_turns,
    )


def source_of(config: RunConfig, tokenizer: Any, without: Collection[str] = ()) -> Source:
    """The rows of `data.train` in a format of the task, a corpus in blocks of the run's length."""
    return _opened(config.data.train, config, tokenizer, without)


def _opened(settings: SourceSettings, config: RunConfig, tokenizer: Any, without: Collection[str] = ()) -> Source:
    source = open_source(settings, task_of(config).formats, without)
    if source.in_blocks is None:
        return source
    return replace(source, records=source.in_blocks(tokenizer, config.data.max_length))


def dev_source_of(config: RunConfig, tokenizer: Any, without: Collection[str] = ()) -> Source | None:
    """The rows of `data.dev.path`, one file, named and read like the training rows."""
    path = config.data.dev.path
    if path is None:
        return None
    if Path(path).is_dir():
        raise DataError(f"data.dev.path {path} is a folder; give the file that holds the dev rows")
    train = config.data.train
    settings = SourceSettings(path=path, format=train.format, columns=train.columns)
    try:
        if train.name is not None and not is_hub_id(train.name):
            return _opened(SourceSettings(name=train.name, path=path), config, tokenizer)
        (file,) = source_files(Path(path)).values()
        return read_source({"dev": file}, settings, task_of(config).formats, without)
    except DataError as error:
        raise DataError(f"data.dev.path: {error}", error.rows) from error


def default_run_folder(config: RunConfig, now: str) -> Path:
    """Where a run without --out goes: `run.name`, or data, model, method and time, below `run.root`."""
    train = config.data.train
    data = Path(train.name or "").name.replace(":", "-") or Path(train.path or "").name.split(".")[0]
    data = data.replace("builtin:", "builtin-")
    model = Path(config.model.name).name.replace("builtin:", "")
    return Path(config.run.root) / (config.run.name or f"{data}-{model}-{config.method.type}-{now}")
