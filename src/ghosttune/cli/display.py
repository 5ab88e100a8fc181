"""What a person sees: a live bar on a terminal, plain lines elsewhere. The only file that imports rich."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ghosttune.cli import summary
from ghosttune.cli.pace import Pace, fitting
from ghosttune.cli.terminal import on_one_line, visible

REFRESHES = 2
"""A second: each takes about a millisecond from training."""

STAGES = {"evaluate": "judging the adapter beside the untouched base", "report": "writing the report"}
"""What a run says that it does when its steps are made."""


class Display:
    """Follows a run by its events and prints results; `quiet` leaves standard output to JSON."""

    def __init__(self, quiet: bool = False):
        self.console = Console(stderr=quiet, highlight=False, markup=False, emoji=False)
        self.live: Live | None = None
        self.pace: Pace | None = None
        self.loss = ""
        self.doing = ""
        self.starts_from = "the untouched base"

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the terminal back its cursor and a line of its own, however the run ended."""
        self.close()

    def line(self, text: str = "", style: str = "") -> None:
        """One line, never broken by us, so that paths and commands can be copied."""
        self.console.print(visible(text), style=style, soft_wrap=True)

    def listen(self, event: dict[str, Any]) -> None:
        """Shows one event of a run."""
        shown = {
            "begin": self._begin,
            "step": self._step,
            "stage": self._stage,
            "log": self._log,
            "eval": self._eval,
            "phase": self._phase,
            "interrupt": self._interrupt,
            "notice": self._notice,
            "already finished": self._already_finished,
            "end": self._end,
        }
        if event["event"] in shown:
            shown[event["event"]](event)

    def _begin(self, event: dict[str, Any]) -> None:
        prepared, counts = event["prepared"], event["parameters"]
        model, train = prepared.config.model, prepared.config.train
        groups = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        self.line(f"run        {event['run'].path}{' (continued)' if event['resumed'] else ''}")
        reads = prepared.config.task.type if prepared.template is None else f"{prepared.template.kind} template"
        self.line(f"model      {model.name} on {model.device}, {model.dtype}, {reads}")
        read = f"{len(prepared.trained):,} {'train' if prepared.stream is None else 'read while training'}"
        counted = f"{read}, {len(prepared.dev):,} dev" + (
            f", {len(prepared.guide):,} guide" if len(prepared.guide) else ""
        )
        self.line(f"rows       {counted}, {on_one_line(prepared.config.data.train.described)}")
        for name, rows in prepared.sources.items():
            split = ", ".join(f"{count:,} {split}" for split, count in rows.items())
            self.line(f"           {on_one_line(name)}: {split}")
        for name, rows in prepared.dev_sets.items():
            self.line(f"           {on_one_line(name)}: {rows:,} dev")
        if prepared.metadata_columns:
            self.line(f"           not shown to the model: {', '.join(map(on_one_line, prepared.metadata_columns))}")
        if rest := prepared.left_out_of_an_epoch:
            self.line(f"           {rest:,} of each epoch left out: its last step is too small for all processes")
        for reason, count in prepared.left_out.items():
            self.line(f"           {count:,} left out: {reason}")
        if done := [f"{count:,} {what.replace('_', ' ')}" for what, count in prepared.patched.items() if count]:
            self.line(f"patched    {', '.join(done)}")
        if prepared.train.without_reasoning:
            self.line(f"           {prepared.train.without_reasoning:,} hold reasoning that the template leaves out")
        if (source := prepared.config.forget.run) is not None:
            self.line(f"forgets    rows of {source}")
            self.starts_from = "the run before"
        self.line(f"trains     {sum(counts.values()):,} parameters ({groups})")
        if without := event["run"].read_record().get("without_rule"):
            self.line(
                f"           {without['parameters']:,} of them by layers without a rule: measured {without['measured']}"
            )
        selection = prepared.config.data.online_selection
        among = f", chosen from {train.rows_per_step * selection.offered} by {selection.by}" if selection.by else ""
        first = "largest" if train.order_descending else "smallest"
        ordered = f", by {train.order}, the {first} first" if train.order != "random" else ""
        learnt = prepared.config.data.mixture
        shares = f", shares of the sources learnt by {learnt.by} every {learnt.every}" if learnt.by else ""
        self.line(f"steps      {train.max_steps:,} of {train.rows_per_step} rows{among}{ordered}{shares}")
        self.line()
        now = time.monotonic()
        self.pace = Pace(train.max_steps, train.eval_steps or train.max_steps, now)
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self.live = Live(self, console=self.console, refresh_per_second=REFRESHES, transient=True)
            self.live.start()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The bar, and of what there is to say as much as fits on the line."""
        if self.pace is None:
            return
        pace, width = self.pace, options.max_width - 1
        counted = f"{pace.step}/{pace.max_steps}"
        length = min(30, max(6, width // 4))
        said = pace.described(self.doing or self.loss, time.monotonic())
        parts = fitting([counted, *said], width - length)
        bar = ProgressBar(total=pace.max_steps, completed=pace.step, width=length)
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(bar, Text("  ".join(parts), no_wrap=True))
        yield line

    def _step(self, event: dict[str, Any]) -> None:
        if self.pace is None:
            return
        now = time.monotonic()
        self.pace.passed(event["step"], event["tokens"], now)
        if self.live is None and self.pace.line_is_due(now):
            counted = f"step {event['step']}/{event['max_steps']}"
            self.line("  ".join([counted, *self.pace.described(self.loss, now)]))

    def _stage(self, event: dict[str, Any]) -> None:
        self.doing = STAGES[event["stage"]]
        if self.live is None:
            self.line(self.doing)

    def _log(self, event: dict[str, Any]) -> None:
        self.loss = f"reward {event['reward']:.3f}" if "reward" in event else f"loss {event['loss']:.4f}"

    def _eval(self, event: dict[str, Any]) -> None:
        start = f"  ({self.starts_from})" if event["step"] == 0 else ""
        earned = f"{event['split']} reward {event['reward']:.3f}, " if "reward" in event else ""
        self.line(f"step {event['step']}: {earned}{event['split']} loss {event['loss']:.4f} nats per target{start}")

    def _phase(self, event: dict[str, Any]) -> None:
        reason = f" ({event['reason']})" if "reason" in event else ""
        self.line(f"step {event['step']}: phase {event['phase']} begins, trains {event['trains']}{reason}")

    def _interrupt(self, event: dict[str, Any]) -> None:
        self.line("stopping after this step and saving its state (again: stop at once)")

    def _notice(self, event: dict[str, Any]) -> None:
        self.line(f"note: {event['text']}")

    def _already_finished(self, event: dict[str, Any]) -> None:
        self.line(f"{event['run'].path} is finished already; there is nothing to continue")

    def _end(self, event: dict[str, Any]) -> None:
        self.close()

    def close(self) -> None:
        """Takes the bar away; safe to call twice."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def summary(self, run: Any, verbose: bool = False, answer: bool = False) -> None:
        """What a finished run achieved; `verbose`: all of it. `answer`: also one dev row's before and after."""
        self.close()
        self.line()
        lines = summary.full(run, self._evaluated(run)) if verbose else summary.short(run)
        for text, style in lines:
            self.line(text, style)
        if (verbose or answer) and run.predictions:
            self._one_answer(run.predictions)

    def _evaluated(self, run: Any) -> list[summary.Line]:
        found = (run.evaluation or {}).get("dev")
        return list(summary.evaluation("dev", found)) if found else []

    def evaluation(self, name: str, result: dict[str, Any]) -> None:
        """Every number with its interval, and what it is against the baselines."""
        for text, style in summary.evaluation(name, result):
            self.line(text, style)

    def _one_answer(self, rows: list[dict[str, Any]]) -> None:
        """The row that the adapter answered best, beside the untouched base."""
        row = max(rows, key=lambda row: next(iter(row["scores"].values()), 0.0) or 0.0)
        said = {"prompt": "prompt", "base": "base_output", "adapter": "output"}
        shown = {label: row[key] for label, key in said.items()} | {"expected": row["references"][0]}
        text = Text()
        for label, words in shown.items():
            text.append(f"{label:<9}", style="bold").append(f"{visible(words)}\n")
        text.rstrip()
        title = Text(f"dev row {on_one_line(row['example_id'])}")  # of text, rich would take [words] for styles
        self.console.print(Panel(text, title=title, title_align="left"))

    def report(self, report: Any) -> None:
        """What `check` found, then the plan."""
        for error in report.errors:
            self.line(error, "red")
        for finding in report.findings:
            self.line(str(finding), "yellow")
        for what in report.not_checked:
            self.line(f"not checked: {what}", "yellow")
        if report.fixed:
            kept, left_out = (report.fixed[name] for name in ("rows", "left_out"))
            self.line(
                f"{report.fixed['path']}: {kept:,} rows; {report.fixed['others']}: {left_out:,} left out, and why"
            )
        for name, value in report.plan.items():
            lines = [f"{updates}: {what}" for updates, what in value.items()] if name == "phases" else [_plain(value)]
            for number, line in enumerate(lines):
                self.line(f"{'' if number else name:<22}{line}")
        if not report.errors and not report.findings:
            self.line("nothing to complain about", "green")

    def shaded(self, shares: Any) -> None:
        """A row's tokens and the answer's, the greener the more they pushed, the redder the more they held back."""
        divided = {shares.example_id: shares.row} | ({"the answer": shares.answer} if len(shares.answer) > 1 else {})
        for name, pieces in divided.items():
            largest = max(abs(piece.share) for piece in pieces) or 1.0
            text = Text(f"{on_one_line(name)}: ")
            for piece in pieces:
                text.append(on_one_line(piece.text) or "…", style=_shade(piece.share / largest))
            self.console.print(text, soft_wrap=True)

    def preview(self, rows: list[Any]) -> None:
        """Rows with their trained tokens marked."""
        for row in rows:
            trained = sum(flag for _, flag in row.tokens)
            part = f", {row.part}" if row.part else ""
            part += f", score {row.score:.4g}" if row.score is not None else ""
            target = f", predicts {row.target}" if row.target else ""
            self.line(
                f"{on_one_line(row.example_id)}{part}: {len(row.tokens)} tokens, {trained} trained (in ⟦ ⟧){target}",
                "bold",
            )
            if row.note:
                self.line(row.note, "yellow")
            if row.drawn:
                self.line(on_one_line(row.drawn))
            text = Text()
            for token, flag in row.tokens:
                text.append(f"⟦{visible(token)}⟧" if flag else visible(token), style="bold green" if flag else "dim")
            self.console.print(text, soft_wrap=True)
            self.line()


def _shade(strength: float) -> str:
    """Style of a share between -1 and 1: white behind it at 0, green above, red below."""
    fading = round(255 * (1 - abs(strength)))
    red, green = (fading, 255) if strength > 0 else (255, fading)
    return f"black on rgb({red},{green},{fading})"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
