"""A finished or unfinished run, as Python sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ghosttune.config.loading import TRUST, load_config, with_values
from ghosttune.config.schema import RunConfig
from ghosttune.inference.pipeline import Pipeline
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import read_table


class Run:
    """Reads a run directory; nothing here changes it.

    `trust_remote_code`: whether code that comes with its model may run, where its configuration asks for that.
    """

    def __init__(self, folder: RunDir, trust_remote_code: bool = False):
        self.folder = folder.open()
        self.trust_remote_code = trust_remote_code

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def record(self) -> dict[str, Any]:
        """The contents of run.json."""
        return self.folder.read_record()

    @property
    def config(self) -> RunConfig:
        """As it was trained; without `trust_remote_code` it asks for no code, so that it can be given to `train`."""
        config = load_config(self.folder.config, trust_remote_code=True)
        return config if self.trust_remote_code else with_values(config, {TRUST: False})

    @property
    def events(self) -> list[dict[str, Any]]:
        """Everything in metrics.jsonl, in order."""
        return self.folder.events()

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The contents of evaluation.json; None when no rows were answered."""
        return self.folder.read_evaluation() or None

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """The answered dev rows."""
        return self.folder.read_predictions("dev")

    @property
    def values(self) -> list[dict[str, Any]]:
        """tables/values, row by row; RunError when the run has no ledger."""
        return read_table(self.folder, "values").to_pylist()

    def lowest_rows(self, count: int) -> list[dict[str, Any]]:
        """The scored training rows that stand lowest: the most harmful first."""
        return self._by_standing()[:count]

    def highest_rows(self, count: int) -> list[dict[str, Any]]:
        """The most helpful first."""
        return self._by_standing()[::-1][:count]

    def _by_standing(self) -> list[dict[str, Any]]:
        return sorted((row for row in self.values if row["standing"] is not None), key=lambda row: row["standing"])

    @property
    def groups(self) -> dict[str, float]:
        """How much each group of modules lowered the guide loss, the largest first; RunError without a ledger."""
        table = read_table(self.folder, "module_steps", ["group", "guide_loss_drop"]).group_by("group")
        sums = table.aggregate([("guide_loss_drop", "sum")]).to_pydict()
        pairs = zip(sums["group"], sums["guide_loss_drop_sum"], strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))

    def export_rows(self, out: str | Path) -> int:
        """Writes all rows with split, values and id to a Parquet file; returns how many (`exporting.export_rows`)."""
        from ghosttune.stages.exporting import export_rows

        return export_rows(self.folder, self.config, Path(out))

    def pipeline(self, which: str = "adapter") -> Pipeline:
        """The run's model, ready to answer."""
        return Pipeline.from_run(self.path, which, trust_remote_code=self.trust_remote_code)


def open_run(path: str | Path, *, trust_remote_code: bool = False) -> Run:
    """The run in a directory; RunError when there is none. Code of its model runs under `trust_remote_code` only."""
    return Run(RunDir(path), trust_remote_code)
