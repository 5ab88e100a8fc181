"""What a person sees: a live bar on a terminal, plain lines elsewhere. The only file that imports rich."""

from __future__ import annotations

import shlex
import time
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ghosttune.cli.terminal import on_one_line, visible
from ghosttune.own_code import short_name
from ghosttune.run.tables import OUR_COLUMNS, ROW_TERMS

LINE_SECONDS = 5.0
"""Least time between two progress lines where there is no terminal."""


class Display:
    """Follows a run by its events and prints results; `quiet` leaves standard output to JSON."""

    def __init__(self, quiet: bool = False):
        self.console = Console(stderr=quiet, highlight=False, markup=False, emoji=False)
        self.bar: Progress | None = None
        self.loss = ""
        self.last_line = 0.0
        self.started = 0.0
        self.starts_from = "the untouched base"

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the terminal back its cursor and a line of its own, however the run ended."""
        self.close()

    def line(self, text: str = "", style: str = "") -> None:
        """One line, never broken by us, so that paths and commands can be copied."""
        self.console.print(visible(text), style=style, soft_wrap=True)

    def recipe(self, title: str, text: str) -> None:
        """The configuration of a run, before it starts."""
        self.line(title, "bold")
        self.line()
        self.line(text)

    def listen(self, event: dict[str, Any]) -> None:
        """Shows one event of a run."""
        shown = {
            "begin": self._begin,
            "step": self._step,
            "log": self._log,
            "eval": self._eval,
            "phase": self._phase,
            "interrupt": self._interrupt,
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
        counted = f"{len(prepared.train):,} train, {len(prepared.dev):,} dev" + (
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
        for reason, count in prepared.left_out.items():
            self.line(f"           {count:,} left out: {reason}")
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
        self.started = time.monotonic()
        if self.console.is_terminal:
            columns = [TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")]
            self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console)
            self.bar.add_task("", total=train.max_steps)
            self.bar.start()

    def _step(self, event: dict[str, Any]) -> None:
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=event["step"], description=self.loss)
        elif time.monotonic() - self.last_line >= LINE_SECONDS:
            self.last_line = time.monotonic()
            seconds = f"{self.last_line - self.started:.0f} s"
            self.line("  ".join(filter(None, (f"step {event['step']}/{event['max_steps']}", self.loss, seconds))))

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

    def _already_finished(self, event: dict[str, Any]) -> None:
        self.line(f"{event['run'].path} is finished already; there is nothing to continue")

    def _end(self, event: dict[str, Any]) -> None:
        self.close()

    def close(self) -> None:
        """Takes the bar away; safe to call twice."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def summary(self, run: Any) -> None:
        """What a finished run achieved, with one answer before and after."""
        from ghosttune.reports.verdict import VERDICTS

        self.close()
        judged = run.record["verdict"]
        change = judged["change"]
        self.line()
        note = f" ({judged['note']})" if judged["note"] else ""
        self.line(VERDICTS[judged["verdict"]] + note, "bold")
        if earned := judged.get("reward"):
            own = earned["change"]
            interval = f"95 % interval {own['low']:+.3f} to {own['high']:+.3f}, {own['n']} prompts"
            self.line(f"reward     {earned['base']:.3f} -> {earned['adapter']:.3f} of greedy answers to dev prompts")
            self.line(f"           change {own['value']:+.3f} ({interval})")
            self.line(f"success    {earned['success_base']:.1%} -> {earned['success']:.1%}")
        self.line(f"dev loss   {judged['dev_loss_base']:.4f} -> {judged['dev_loss']:.4f} nats per target")
        interval = f"95 % interval {change['low']:+.4f} to {change['high']:+.4f}, {change['n']} rows"
        self.line(f"change     {change['value']:+.4f} ({interval})")
        if run.evaluation and "dev" in run.evaluation:
            self.evaluation("dev", run.evaluation["dev"])
            if run.predictions:
                self._one_answer(run.predictions)
        if "ledger" in run.record:
            self._ledger(run)
        self.line(f"adapter    {run.folder.adapter} (best: step {judged['best_step']}), loads with PEFT alone")
        if run.folder.report.is_dir():
            self.line(f"report     {run.folder.report / 'index.html'}")
        if run.config.task.type in ("causal_lm", "grpo"):
            self.line(f"try        ghosttune chat {shlex.quote(str(run.path))} --prompt {_quoted(run.predictions)}")

    def _ledger(self, run: Any) -> None:
        """What lowered the guide loss, how far the account closes, and the rows at either end."""
        account, groups = run.record["ledger"], run.groups
        drop = account["guide_loss_start"] - account["guide_loss_end"]
        self.line(
            f"guide loss {account['guide_loss_start']:.4f} -> {account['guide_loss_end']:.4f} nats per target, "
            f"{account['change']['n']} rows ({account['verdict']})"
        )
        parts = ", ".join(f"{name} {value:+.4f}" for name, value in groups.items())
        self.line(f"           lowered by {parts}; residual {account['modules_residual']:+.4f} of {drop:+.4f}")
        terms = {title: account[name] for name, title in ROW_TERMS.items() if name in account}
        parts = ", ".join(f"{title} {value:+.4f}" for title, value in terms.items())
        self.line(f"           by rows: {parts}; residual {account['residual']:+.4f}")
        for name, found in account["columns"].items():
            auroc = found["auroc"]
            self.line(
                f"{on_one_line(name):<10} {found['rows']} rows: {found['verdict']} by their standing, "
                f"AUROC {auroc['value']:.2f} (95 % interval {auroc['low']:.2f} to {auroc['high']:.2f})"
            )
        for title, rows in (("harmful", run.lowest_rows(3)), ("helpful", run.highest_rows(1))):
            for row in rows:
                self.line(f"{title}    {row['standing']:+.2f} {on_one_line(row['example_id'])}{_extras(row)}")

    def evaluation(self, name: str, result: dict[str, Any]) -> None:
        """Every number with its interval, and what it is against the baselines."""
        if "questions" in result:
            left_out = f", {result['left_out']:,} left out" if result["left_out"] else ""
            prompts = f"{result['questions']:,} prompt{'s' if result['questions'] != 1 else ''}"
            self.line(f"{name + ' ':<10} {prompts}{left_out}" + (", greedy answers" if "generation" in result else ""))
        names = {metric: on_one_line(short_name(metric)) for metric in result.get("metrics", {})}
        width = max(map(len, names.values()), default=0)
        for metric, description in result.get("metrics", {}).items():
            self.line(f"{names[metric]:<{width}} {_scored(metric, description['scale'], result)}")
        for system, found in result.get("degenerate", {}).items():
            if found["faults"]:
                counted = ", ".join(f"{count} {fault}" for fault, count in found["faults"].items())
                shown = ", ".join(on_one_line(example["example_id"]) for example in found["examples"])
                style = "yellow" if found["alarm"] and system != "base" else ""
                self.line(f"degenerate {found['share']['value']:.0%} of {system}: {counted} (such as {shown})", style)
        if "forgetting" in result:
            self.line(_forgotten(result["forgetting"]))

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


def _scored(metric: str, scale: str, result: dict[str, Any]) -> str:
    """`41.2 (38.9 to 43.4), base 3.1: better, constant 12.0: better`."""
    first, others = next(iter(result)), result["comparison"]
    found = result[first][metric]
    value, low, high = (_number(found[bound], scale) for bound in ("value", "low", "high"))
    shown = f"{value} ({low} to {high})"
    for other in others:
        against = others[other].get(metric)
        if metric in result[other]:
            value = _number(result[other][metric]["value"], scale)
            shown += f", {other} {value}" + (f": {against['verdict']}" if against else "")
    return shown


def _number(value: float | None, scale: str) -> str:
    if value is None:
        return "none"
    return f"{value:.0%}" if scale.startswith("share") else f"{value:.4g}"


def _forgotten(found: dict[str, Any]) -> str:
    losses = " -> ".join(
        f"{found[name]['value']:.4f}" for name in ("base", "baseline", "adapter", "model") if name in found
    )
    change = found.get("change")
    interval = (
        f", {change['value']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f}): {found['verdict']}"
        if change
        else ""
    )
    return f"general    {losses} nats per token of {found['text']}{interval}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _extras(row: dict[str, Any]) -> str:
    """The row's own columns, those that say something."""
    own = {name: value for name, value in row.items() if name not in {*OUR_COLUMNS} - {"tokens"}}
    texts = {on_one_line(name): on_one_line(value) for name, value in own.items() if value not in (None, "", False)}
    said = ", ".join(f"{name}: {text if len(text) <= 60 else text[:59] + '…'}" for name, text in texts.items())
    return f" ({said})" if said else ""


def _quoted(rows: list[dict[str, Any]]) -> str:
    prompt = rows[0]["prompt"] if rows else "Hello"
    return shlex.quote(prompt if len(prompt) < 200 else prompt[:80] + "…")
