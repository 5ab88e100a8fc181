"""What cannot be had of rows that are read while a run goes on, and what has to be given in its place."""

from __future__ import annotations

from collections.abc import Iterator

from ghosttune.config.schema import RunConfig

ALL_ROWS = {
    "data.train.limit": (None, "draws a sample of all rows; bound the run with train.max_steps"),
    "data.train.keep": (None, "chooses among all rows; stream files that hold the chosen ones"),
    "data.train.patch": (None, "names rows among all rows; change the files that are streamed"),
    "data.train.temperature": (None, "is about all rows of several sources"),
    "data.dev.fraction": (None, "sets a share of all rows aside; give data.dev.path"),
    "data.dev.split": (None, "is a split of all rows; give data.dev.path"),
    "data.guide.fraction": (None, "sets a share of all rows aside; give data.guide.path"),
    "data.guide.split": (None, "is a split of all rows; give data.guide.path"),
    "train.num_train_epochs": (None, "counts passes over rows whose number is not known; give train.max_steps"),
    "train.group_by_length": (
        False,
        "sorts rows that have not been read; micro-batches hold rows of like length anyway",
    ),
    "train.order": ("random", "sorts rows that have not been read"),
    "forget.run": (None, "needs all rows of the run before; train on files that are read whole"),
}
"""Setting -> what it is when it is off, and why it cannot be with a stream."""


def what_a_stream_lacks(config: RunConfig) -> Iterator[tuple[str, str]]:
    """(setting, message) of each setting that a streamed source cannot follow, and of what is missing beside it."""
    train, dev, guide = config.data.train, config.data.dev, config.data.guide
    if train.sources is not None:
        yield "data.train.streaming", "is for one source; leave out data.train.sources, or read all of them whole"
        return
    if train.name is not None and "/" not in train.name:
        yield "data.train.streaming", f"is for files and hub ids, and {train.name} is read whole; set it to false"
    for setting, (off, why) in ALL_ROWS.items():
        value = config
        for name in setting.split("."):
            value = getattr(value, name)
        if value != off:
            yield setting, f"cannot be with data.train.streaming: it {why}"
    if why := config.task.read_whole:
        yield "data.train.streaming", f"cannot be with task.type: {config.task.type}, which {why}; set it to false"
    if (dev.path, dev.sources, dev.fraction, dev.split) == (None,) * 4:
        yield "data.dev.path", "is missing: a stream has no rows to set aside; give a file of dev rows"
    if config.measure.ledger.guide_every is not None and (guide.path, guide.fraction, guide.split) == (None,) * 3:
        yield "data.guide.path", "is missing: a stream has no rows to set aside; give a file, or measure.ledger: null"
