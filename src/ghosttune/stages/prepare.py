"""From a configuration to everything that training needs except the model: rows, splits, features, plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ghosttune.config.loading import value_at, with_values
from ghosttune.config.resolve import Facts, Refuse, refuse, resolve_sources, resolve_steps
from ghosttune.config.schema import RunConfig
from ghosttune.config.sections.data import RowsSettings
from ghosttune.config.sections.evaluate import EVALUATION_FILES
from ghosttune.data.contamination import Contamination, contamination
from ghosttune.data.encoding import Encoded, Encoder, RowEncoder
from ghosttune.data.files import changed_files, fingerprint
from ghosttune.data.hub import is_hub_id
from ghosttune.data.images import ImageEncoder, ImageReader
from ghosttune.data.mixing import mixed, open_data, rows_in_an_epoch, source_of_row
from ghosttune.data.patching import Patched, patched
from ghosttune.data.questions import questions_of
from ghosttune.data.records import Records
from ghosttune.data.retaining import forgotten_and_retained
from ghosttune.data.selecting import ids_in
from ghosttune.data.sources import Source, open_source, read_source, refuse_repeated, source_files
from ghosttune.data.splitting import sample, shared_groups, split_off, split_off_each, split_off_rows
from ghosttune.data.stored import Stored
from ghosttune.data.streaming import open_stream
from ghosttune.data.templates import Template
from ghosttune.data.turns import images_of
from ghosttune.errors import ConfigError, DataError, ModelError, Problem, TooFewRows, listed
from ghosttune.metrics.judging import labels_of
from ghosttune.models.loading import cuda_devices, has_bfloat16, load_processor, load_tokenizer
from ghosttune.own_code import consent
from ghosttune.registry import TASKS
from ghosttune.run.directory import RunDir
from ghosttune.training.alerting import fault_of_address
from ghosttune.training.order import Draws, LearntOrder, MicroBatches, RowOrder
from ghosttune.training.processes import processes
from ghosttune.training.streaming import StreamedRows, StreamOrder


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
    draws: Draws | None = None
    """Which rows an epoch has, where sources are mixed in other shares than their rows are."""
    scores: Sequence[float] | None = None
    """What the training rows are ordered by, the smallest first; None while that is not known, or for a draw."""
    patched: Mapping[str, int] = field(default_factory=dict)
    """What `data.train.patch` did -> to how many rows; empty without one."""
    stream: StreamedRows | None = None
    """The rows that train, where they are read meanwhile; the training rows above are then its first window."""

    def order(self, offered: int = 1) -> RowOrder:
        """In which order all processes read the training rows, `offered` for each that trains."""
        if self.config.data.mixture.by is not None:
            return self.learnt_order()
        train, repeats = self.config.train, self.config.task.repeats
        return RowOrder.of_run(self.train.features, train, self.draws, self.scores, offered, repeats)

    def learnt_order(self) -> LearntOrder:
        """The same where the shares of the sources are learnt, with those that the run begins with."""
        train, rows = self.config.train, self.train.features
        assert self.draws is not None  # what `_draws` makes wherever weights are learnt
        lengths, size, every = [len(row) for row in rows], train.rows_per_step * processes(), self.config.data.mixture
        return LearntOrder(lengths, size, train.seed, train.group_by_length, self.draws, every.every)

    @property
    def trained(self) -> Encoded:
        """What trains, row by row."""
        return self.train if self.stream is None else Encoded(self.stream)

    def order_of_training(self) -> RowOrder:
        """In which order all processes read the rows that train."""
        offered = self.config.data.online_selection.offered
        return self.order(offered) if self.stream is None else StreamOrder(self.stream)

    @property
    def left_out_of_an_epoch(self) -> int:
        """How many rows the last step of each epoch has too few of for all processes; 0 with one process."""
        size = self.config.train.per_device_train_batch_size * self.config.data.online_selection.offered
        return MicroBatches(self.order_of_training(), size, 0, processes()).left_out

    @property
    def rows_in_an_epoch(self) -> int:
        """How many rows an epoch has; of a stream, the rows of the run."""
        if self.stream is not None:
            return len(self.stream)
        return len(self.train) if self.draws is None else len(self.draws)

    @property
    def template(self) -> Template | None:
        """What renders prompts; None where the task has none."""
        return self.encoder.template if isinstance(self.encoder, Encoder) else None

    @property
    def judged_by_source(self) -> bool:
        """Whether dev rows are of named sets: their own, or the sources of a mixture, and not of one file."""
        train, dev = self.config.data.train, self.config.data.dev
        return dev.sources is not None or (train.sources is not None and dev.path is None)

    @cached_property
    def sources(self) -> dict[str, dict[str, int]]:
        """Of a mixture: source -> how many of its rows train, judge, guide and come in an epoch; else empty.

        Where weights are learnt, an epoch of those that the run begins with.
        """
        if self.config.data.train.sources is None:
            return {}
        splits = {"train": self.train_records, "dev": self.dev_records, "guide": self.guide_records}
        counts = {split: Counter(sources_of(records)) for split, records in splits.items()}
        counts["epoch"] = Counter(
            self.draws.counts if self.draws else (source_of_row(row.example_id) for row in self.train.features)
        )
        return {
            name: {split: found[name] for split, found in counts.items()} for name in self.config.data.train.sources
        }

    @cached_property
    def dev_sets(self) -> dict[str, int]:
        """Dev set -> how many rows it has; empty where the dev rows are no named sets of their own."""
        return dict(Counter(sources_of(self.dev_records))) if self.config.data.dev.sources is not None else {}

    @cached_property
    def contamination(self) -> Contamination:
        """Which dev and test rows were trained on; reads all of them and the training rows."""
        return contamination(self.train_records, {"dev": self.dev_records, "test": self.test_records})

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
    refuse([*_tracker_problems(config), *_alert_problems(config), *_evaluation_file_problems(config)])
    tokenizer = load_tokenizer(config.model)
    task = task_of(config)
    refuse([*_format_problems(config, task), *_process_problems(config)])
    source = source_of(config, tokenizer, without)
    config = resolve_sources(config, _facts(config, source, tokenizer), refuse)
    dev_source, guide_source = dev_source_of(config, tokenizer, without), guide_source_of(config, tokenizer, without)
    drawn = split_records(config, source, dev_source, guide_source)
    derived = {f"task.{name}": value for name, value in task.derived(drawn.train).items()}
    refuse(_stream_problems(config, task, derived))
    config = with_values(config, derived, "derived")
    task = task_of(config)
    refuse(_image_problems(config, drawn) or _metric_problems(config, drawn))
    with _template_named(config):
        encoder = task.encoder(tokenizer, config.data)
    if source.records.have_images or (dev_source is not None and dev_source.records.have_images):
        encoder = ImageEncoder(encoder, ImageReader(load_processor(config.model)))
    train, dev, guide = (
        encoder.encode(records, config.data.truncated_share) for records in (drawn.train, drawn.dev, drawn.guide)
    )
    draws = _weighted(drawn.patch, train) or _draws(config, train, refuse)
    left_out = Counter(drawn.left_out)
    for split in (train, dev, guide):
        left_out.update(split.left_out)
    config = resolve_steps(config, len(train) if draws is None else len(draws), processes(), refuse)
    return Prepared(
        config=config,
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
        fingerprints=source.fingerprints
        | (dev_source.fingerprints if dev_source else {})
        | (guide_source.fingerprints if guide_source else {})
        | _fingerprints_of_ids(config),
        left_out=dict(left_out),
        draws=draws,
        patched={} if drawn.patch is None else drawn.patch.counts,
        stream=_stream(config, source, drawn, encoder),
    )


@contextmanager
def _template_named(config: RunConfig) -> Iterator[None]:
    """Says of a template that somebody named, and that cannot be used, where it was named: ConfigError."""
    try:
        yield
    except ModelError as error:
        if config.model.chat_template is None:
            raise
        raise ConfigError([config.problem("model.chat_template", str(error))]) from error


def _stream(config: RunConfig, source: Source, drawn: Drawn, encoder: RowEncoder) -> StreamedRows | None:
    """The rows that train where they are read meanwhile; None where they have been read."""
    if source.stream is None:
        return None
    train, share = config.train, config.data.truncated_share
    size = train.rows_per_step * config.data.online_selection.offered * processes()
    encode, apart = partial(encoder.encode, truncated_share=share), partial(_require_apart, drawn)
    return StreamedRows(source.stream, encode, apart, size, train.max_steps or 0)


def _draws(config: RunConfig, train: Encoded, refuse: Refuse) -> Draws | None:
    """Which rows an epoch has; None for every row once. A source of which none would come is refused.

    Where weights are learnt, those of the beginning.
    """
    settings = config.data.train
    if settings.sources is None:
        return None
    names = np.array([source_of_row(row.example_id) for row in train.features], object)
    positions = {name: np.flatnonzero(names == name) for name in settings.sources}
    rows = {name: len(own) for name, own in positions.items()}
    counts = rows_in_an_epoch(settings, rows)
    if counts is None and config.data.mixture.by is None:
        return None
    counts = counts or rows
    refuse(
        [_never_drawn(config, name, len(train)) for name, rows in positions.items() if not counts[name] and len(rows)]
    )
    refuse([_nothing_to_draw(config, name) for name, rows in positions.items() if counts[name] and not len(rows)])
    positions = {name: rows for name, rows in positions.items() if len(rows)}
    return Draws(positions, {name: counts[name] for name in positions})


def _never_drawn(config: RunConfig, name: str, rows: int) -> Problem:
    setting = "temperature" if config.data.train.temperature is not None else f"sources.{name}.weight"
    message = f"leaves no row of {name} to an epoch of {rows} rows, so that it would never train; raise its share"
    return config.problem(f"data.train.{setting}", message)


def _nothing_to_draw(config: RunConfig, name: str) -> Problem:
    message = f"asks for rows of {name}, and none of its rows are left to train; leave the source out"
    return config.problem(f"data.train.sources.{name}.weight", message)


@dataclass(frozen=True)
class Drawn:
    """Which rows do what; disjoint by id and by prompt."""

    train: Records
    dev: Records
    guide: Records
    dev_pool: Records
    left_out: dict[str, int]
    """Rows of the source that the run does not use, by reason."""
    patch: Patched | None = None
    """What `data.train.patch` made of the rows."""


def split_records(
    config: RunConfig, source: Source, dev_source: Source | None, guide_source: Source | None = None
) -> Drawn:
    """The rows that train, those that choose checkpoints and those that give the held-out gradient.

    `data.train.limit` is applied before a `fraction` is drawn, so that it bounds the rows of all three.
    """
    seed, dev, guide = config.train.seed, config.data.dev, config.data.guide
    kept, beyond = _limited(config, source)
    left_out = source.dropped | beyond
    for split in source.splits:
        if split not in ("train", dev.split, guide.split):
            left_out[f"split {split} is not used for training"] = len(source.records.of_split(split))
    if dev_source is not None:
        judges = dev_source.records
    elif dev.split is not None:
        judges = source.records.of_split(dev.split)
    elif source.parts:
        kept, judges = split_off_each(kept, sources_of(kept), dev.fraction or 0.0, seed, "dev")
    else:
        kept, judges = split_off(kept, dev.fraction or 0.0, seed, "dev")
    dev_records = sample(judges, dev.limit, seed)
    left_out["beyond data.dev.limit"] = len(judges) - len(dev_records)
    kept, guides, cut = _guide_records(config, source if guide_source is None else guide_source, kept)
    left_out["beyond data.guide.rows"] = cut
    _require_apart(Drawn(kept, dev_records, guides, judges, {}), kept)
    _refuse_shared("dev", judges, guides, "the two would not judge independently", other="guide")
    if config.data.train.keep is not None:
        kept, not_kept = _named_rows(config.data.train.keep, kept, source)
        left_out |= not_kept
    patch = _patched(config, kept, guides, source)
    if patch is not None:
        kept, guides = patch.train, patch.guide
        left_out["dropped by data.train.patch"] = patch.counts["dropped"]
        _require_apart(Drawn(kept, dev_records, guides, judges, {}), kept)
    if config.forget.run is not None:
        trained, kept = kept, forgotten_and_retained(config.forget, kept, seed)
        left_out["neither forgotten nor retained"] = len(trained) - len(kept)
    used = {reason: count for reason, count in left_out.items() if count}
    return Drawn(kept, dev_records, guides, judges, used, patch)


def _patched(config: RunConfig, kept: Records, guides: Records, source: Source) -> Patched | None:
    """The rows with the changes of `data.train.patch`; None without one."""
    train = config.data.train
    if train.patch is None:
        return None
    return patched(Path(train.patch), kept, guides, source.records, task_of(config).formats, train.sources is not None)


def _weighted(patch: Patched | None, train: Encoded) -> Draws | None:
    """An epoch in which rows come as often as a patch says; None where it says nothing of that."""
    if patch is None or not patch.weights:
        return None
    weights = np.array([patch.weights.get(row.example_id, 1) for row in train.features])
    positions = {f"weight {weight}": np.flatnonzero(weights == weight) for weight in np.unique(weights)}
    counts = {name: len(rows) * int(name.split()[1]) for name, rows in positions.items()}
    return Draws(positions, counts)


def _require_apart(drawn: Drawn, rows: Records) -> None:
    """DataError where rows that train have the id of another row, or ask what a row asks that judges."""
    refuse_repeated(Stored(record.example_id for record in chain(rows, drawn.dev_pool, drawn.guide)))
    _refuse_shared("dev", drawn.dev_pool, rows, "dev would reward memory")
    _refuse_shared("guide", drawn.guide, rows, "the guide gradient would reward memory")


def _limited(config: RunConfig, source: Source) -> tuple[Records, dict[str, int]]:
    """(the rows that are no other split's, of each source as many as its limit lets through; how many are beyond it).

    TooFewRows names the sources that have none.
    """
    own, seed, train = source.records.of_split(None, "train"), config.train.seed, config.data.train
    if train.sources is None:
        if not own:
            raise TooFewRows("no training rows: the source's rows all belong to other splits")
        kept = sample(own, train.limit, seed)
        return kept, {"beyond data.train.limit": len(own) - len(kept)}
    names = sources_of(own)
    parts = {name: own.where(names == name) for name in train.sources}
    if without := [name for name, rows in parts.items() if not rows]:
        raise TooFewRows(f"no training rows of {listed(without)}: all rows of theirs belong to other splits")
    kept = {name: sample(rows, train.sources[name].limit, seed) for name, rows in parts.items()}
    beyond = {f"{name}: beyond its limit": len(rows) - len(kept[name]) for name, rows in parts.items()}
    return _together(kept), beyond


def _together(parts: Mapping[str, Records]) -> Records:
    """Some of the records of one source, as one again."""
    some = next(iter(parts.values()))
    return replace(some, positions=np.concatenate([rows.positions for rows in parts.values()]))


def sources_of(records: Records) -> np.ndarray:
    """[N] the source of a mixture that each record came from."""
    return np.array([source_of_row(record.example_id) for record in records], object)


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
    """(training rows that remain, guide rows, rows that are neither); `source` is where guide rows come from."""
    guide, seed = config.data.guide, config.train.seed
    if guide.split is not None or guide.path is not None:
        found = source.records if guide.split is None else source.records.of_split(guide.split)
        if guide.rows is not None and len(found) < guide.rows:
            where = guide.path if guide.split is None else f"the split {guide.split}"
            raise DataError(f"data.guide.rows asks for {guide.rows} rows, and {where} has {len(found)}; lower it")
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


def _fingerprints_of_ids(config: RunConfig) -> dict[str, str]:
    """Of the files that name rows."""
    paths = (config.data.train.keep, config.data.train.patch, config.forget.rows, config.forget.retain)
    return {path: fingerprint(Path(path)) for path in paths if path is not None}


def _format_problems(config: RunConfig, task: Any) -> list[Problem]:
    message = f"is not for {config.task.type}, which reads {listed(task.formats)}"
    return [
        config.problem(f"{setting}.format", f"{source.format} {message}")
        for setting, source in (config.data.train.parts | config.data.dev.parts).items()
        if source.format != "auto" and source.format not in task.formats
    ]


def _process_problems(config: RunConfig) -> list[Problem]:
    if not config.task.draws or processes() == 1:
        return []
    message = f"is {config.task.type}, which draws its answers in one process, not in {processes()}"
    return [config.problem("task.type", message)]


def _stream_problems(config: RunConfig, task: Any, derived: Mapping[str, Any]) -> list[Problem]:
    """What the task would take from all rows, of which the first ones are known."""
    if not config.data.train.streaming:
        return []
    found = [setting for setting in derived if setting == "task.labels"]
    message = "is missing: the labels of a stream are not known before it was read; give all of them"
    problems = [config.problem(setting, message) for setting in found]
    if getattr(task, "needs_reference", False):
        message = (
            "asks the base about every row before the first update, and rows of a stream come later; take a loss "
            "without a reference (orpo, simpo, cpo), or set data.train.streaming: false"
        )
        problems.append(config.problem("task.loss", message))
    return problems


def _tracker_problems(config: RunConfig) -> list[Problem]:
    missing = [name for name in config.run.trackers if find_spec(name) is None]
    extras = ",".join(missing)
    message = f"not installed: {', '.join(missing)}; pip install 'ghosttune[{extras}]', or take it off the list"
    return [config.problem("run.trackers", message)] if missing else []


def _alert_problems(config: RunConfig) -> list[Problem]:
    alerts = config.alerts
    found = []
    if alerts.webhook is not None and (fault := fault_of_address(alerts.webhook)):
        found.append(config.problem("alerts.webhook", fault))
    if alerts.command is not None and not consent():
        message = f"{alerts.command!r} would run on this machine: give --allow-code (in Python ghosttune.allow_code())"
        found.append(config.problem("alerts.command", message))
    return found


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
    if chosen == "auto" or config.evaluate.limit == 0 or not config.task.answers:
        return []
    questions, _ = questions_of(drawn.dev, drawn.dev_pool, config.evaluate.limit, config.train.seed)
    if not questions:
        message = "needs dev rows with an answer, and these are plain text; leave it out"
        return [config.problem("evaluate.metrics", message)]
    labels_of([question.references for question in questions], chosen)
    return []


def _image_problems(config: RunConfig, drawn: Drawn) -> list[Problem]:
    """What does not go with rows that show images."""
    if not config.task.draws:
        return []
    shown = sum(bool(images_of(record.turns)) for record in chain(drawn.train, drawn.dev))
    seen = f"is {config.task.type}, and {shown} rows show images"
    message = f"{seen}, to which no answers are drawn; take causal_lm, or rows of text"
    return [config.problem("task.type", message)] if shown else []


def require_same_data(run: RunDir, fingerprints: dict[str, str]) -> None:
    """DataError when the files of a run are not those it was started with."""
    if changed := changed_files(run.read_record()["data"]["fingerprints"], fingerprints):
        raise DataError(f"{', '.join(changed)} changed since {run.path} was started; restore it, or start a new run")


def _facts(config: RunConfig, source: Source, tokenizer: Any) -> Facts:
    with_dev = set(sources_of(source.records.of_split("dev"))) if source.parts else set()
    return Facts(
        cuda_devices=cuda_devices(config.model.device),
        source_splits=source.splits,
        row_format=source.row_format,
        has_template=task_of(config).renders,
        device_has_bfloat16=config.model.device == "cpu" or has_bfloat16(),
        has_chat_template=bool(getattr(tokenizer, "chat_template", None)),
        holds_conversations=source.has_turns,
        holds_lone_turns=source.has_lone_turns,
        source_formats={name: part.row_format for name, part in source.parts.items()},
        plain_sources=tuple(
            name for name, part in source.parts.items() if part.row_format == "text" and not part.has_turns
        ),
        lacking_dev=tuple(name for name in source.parts if name not in with_dev) if with_dev else (),
    )


def source_of(config: RunConfig, tokenizer: Any, without: Collection[str] = ()) -> Source:
    """The rows of `data.train` in a format of the task: a corpus in blocks of the run's length, a stream's first."""
    train, formats = config.data.train, task_of(config).formats
    if train.streaming:
        return open_stream(train, config.train.seed, formats)
    return _in_blocks(open_data(train, formats, without), config, tokenizer)


def _in_blocks(source: Source, config: RunConfig, tokenizer: Any) -> Source:
    if source.in_blocks is None:
        return source
    return replace(source, records=source.in_blocks(tokenizer, config.data.max_length))


def dev_source_of(config: RunConfig, tokenizer: Any, without: Collection[str] = ()) -> Source | None:
    """The rows of `data.dev.path`, one file, named and read like the training rows; or those of `data.dev.sources`."""
    if config.data.dev.sources is not None:
        return _dev_sets(config, config.data.dev.sources, tokenizer)
    return _judges_of_file(config, "dev", config.data.dev.path, tokenizer, without)


def guide_source_of(config: RunConfig, tokenizer: Any, without: Collection[str] = ()) -> Source | None:
    """The rows of `data.guide.path`, one file, named and read like the training rows."""
    return _judges_of_file(config, "guide", config.data.guide.path, tokenizer, without)


def _judges_of_file(
    config: RunConfig, purpose: str, path: str | None, tokenizer: Any, without: Collection[str]
) -> Source | None:
    if path is None:
        return None
    setting = f"data.{purpose}.path"
    if Path(path).is_dir():
        raise DataError(f"{setting} {path} is a folder; give the file that holds the {purpose} rows")
    train = config.data.train
    settings = RowsSettings(path=path, format=train.format, columns=train.columns)
    try:
        if train.name is not None and not is_hub_id(train.name):
            found = open_source(RowsSettings(name=train.name, path=path), task_of(config).formats)
            return _in_blocks(found, config, tokenizer)
        (file,) = source_files(Path(path)).values()
        return read_source({purpose: file}, settings, task_of(config).formats, without)
    except DataError as error:
        raise DataError(f"{setting}: {error}", error.rows) from error


def _dev_sets(config: RunConfig, sources: Mapping[str, RowsSettings], tokenizer: Any) -> Source:
    """The rows of all dev sets: of a source that has splits those of its split dev; DataError for a set of none."""
    try:
        found = _in_blocks(mixed(sources, task_of(config).formats), config, tokenizer)
    except DataError as error:
        raise DataError(f"data.dev.sources: {error}") from error
    judges = found.records.of_split(None, "dev")
    names = sources_of(judges)
    if without := [name for name in sources if not (names == name).any()]:
        raise DataError(
            f"data.dev.sources: no rows of {listed(without)} judge: the source has splits and none is called dev; give "
            "a file of its own"
        )
    kept = {name: sample(judges.where(names == name), sources[name].limit, config.train.seed) for name in sources}
    return replace(found, records=_together(kept))


def default_run_folder(config: RunConfig, now: str) -> Path:
    """Where a run without --out goes: `run.name`, or data, model, method and time, below `run.root`."""
    train = config.data.train
    mixture = "+".join(train.sources or ())[:60]
    data = mixture or Path(train.name or "").name.replace(":", "-") or Path(train.path or "").name.split(".")[0]
    data = data.replace("builtin:", "builtin-")
    model = Path(config.model.name).name.replace("builtin:", "")
    return Path(config.run.root) / (config.run.name or f"{data}-{model}-{config.method.type}-{now}")
