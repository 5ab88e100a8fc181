"""Settings that can work and seldom do: rates, lengths and sizes far from where runs of their kind succeed."""

from __future__ import annotations

from dataclasses import dataclass

from ghosttune.config.findings import Checks, Found
from ghosttune.config.schema import RunConfig

SETTINGS = Checks()
"""The checks of settings, each made of a `Planned`."""

WIDE = 1024
"""Width from which the usual learning rates hold; below it they grow with 1 / width (arXiv 2203.03466)."""

MOST_PASSES = 200
"""Passes over the rows beyond which a run only repeats itself; published recipes make 1 to 20."""


@dataclass(frozen=True)
class Planned:
    """A resolved configuration, and how many rows it is for."""

    config: RunConfig
    train_rows: int
    dev_rows: int
    fewest_dev_rows: int
    """Below so many a verdict says nothing."""
    width: int
    """Of the model's hidden states."""

    @property
    def usual_rates(self) -> tuple[float, float]:
        """Lowest and highest usual learning rate: narrow models take larger ones, untrained ones as well."""
        low, high = self.config.method.usual_rates
        wider = max(1.0, WIDE / self.width) * (10 if self.config.model.init == "random" else 1)
        return low, min(high * wider, 1.0)


@SETTINGS.add("Below it nothing is learned in any usual number of steps, above it the loss mostly diverges")
def learning_rate_out_of_range(case: Planned) -> Found:
    """A learning rate outside what the method usually learns with."""
    low, high = case.usual_rates
    rate = case.config.train.learning_rate
    if not low <= rate <= high:
        yield (
            f"train.learning_rate is {rate:g}; {case.config.method.type} usually learns with {low:.2g} to {high:.2g} "
            f"in a model of width {case.width}",
            f"Set it to {min(max(rate, low), high):.2g}, or look at the first losses before you wait for the rest",
            [],
        )


@SETTINGS.add("Most of the run would train below the rate that was chosen")
def warmup_most_of_the_run(case: Planned) -> Found:
    """A warm-up of more than half the steps."""
    train, steps = case.config.train, case.config.train.max_steps or 0
    if 2 * train.warmup_steps > steps:
        yield (
            f"train.warmup_steps is {train.warmup_steps} of the run's {steps}",
            f"Set it to {max(1, steps // 10)}, a tenth of the run",
            [],
        )


@SETTINGS.add("The adapter learns the rows by heart long before the end")
def too_many_passes(case: Planned) -> Found:
    """More steps than any number of rows needs."""
    steps = case.config.train.max_steps or 0
    per_pass = max(1.0, case.train_rows / case.config.train.rows_per_step)
    if steps > MOST_PASSES * per_pass:
        yield (
            f"train.max_steps {steps} reads the {case.train_rows} training rows {steps / per_pass:,.0f} times",
            f"Lower it to {round(20 * per_pass)}, which are 20 passes, or add rows",
            [],
        )


@SETTINGS.add("Every step would be the same full pass, and accumulation or batch size does nothing beyond it")
def batch_larger_than_the_data(case: Planned) -> Found:
    """More rows per step than there are training rows."""
    selection = case.config.data.online_selection
    taken = case.config.train.rows_per_step * selection.offered
    if taken > case.train_rows:
        yield (
            f"a step takes {taken} rows (train.per_device_train_batch_size x train.gradient_accumulation_steps"
            f"{' x data.online_selection.candidates' if selection.by else ''}), and {case.train_rows} train",
            f"Lower them to {case.train_rows} rows together, or add rows",
            [],
        )


@SETTINGS.add("The best checkpoint and the verdict would be chance")
def too_few_dev_rows(case: Planned) -> Found:
    """Fewer dev rows than a verdict needs."""
    if case.dev_rows < case.fewest_dev_rows:
        yield (
            f"{case.dev_rows} dev rows choose the best checkpoint and judge the run; a verdict needs "
            f"{case.fewest_dev_rows}",
            "Raise data.dev.fraction or data.dev.limit, or give data.dev.path a file of its own",
            [],
        )


@SETTINGS.add("The best state is looked for among so few that it is the run's end, whatever that is")
def evaluated_at_the_end_only(case: Planned) -> Found:
    """Dev evaluations so far apart that no checkpoint is chosen."""
    train, steps = case.config.train, case.config.train.max_steps or 0
    if steps >= 10 and train.eval_steps is not None and 2 * train.eval_steps > steps:
        yield (
            f"train.eval_steps is {train.eval_steps} of the run's {steps}: one evaluation has something to choose",
            f"Set train.eval_steps to {max(1, steps // 10)}, a tenth of the run",
            [],
        )


@SETTINGS.add("What is lost between two of them cannot be resumed")
def saved_at_the_end_only(case: Planned) -> Found:
    """Checkpoints so far apart that an interrupted run starts over."""
    train, steps = case.config.train, case.config.train.max_steps or 0
    if steps >= 10 and train.save_steps is not None and 2 * train.save_steps > steps:
        yield (
            f"train.save_steps is {train.save_steps} of the run's {steps}",
            f"Set train.save_steps to {max(1, steps // 10)}, a tenth of the run",
            [],
        )
