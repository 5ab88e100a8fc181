"""What a finished run achieved, as lines: a short form for everyone, and all of it for who asks."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from ghosttune.cli.terminal import on_one_line
from ghosttune.own_code import short_name
from ghosttune.run.tables import OUR_COLUMNS, ROW_TERMS

Line = tuple[str, str]
"""A line and its style."""

ADVICE = {
    "worse": "lower train.learning_rate, or look at the rows: ghosttune preview",
    "negligible": "more updates or a higher train.learning_rate may do more; ghosttune check says what is usual",
    "not distinguishable": "more dev rows tell smaller differences apart, more updates make larger ones",
}
"""What to do about each verdict but `better`."""


def short(run: Any) -> Iterator[Line]:
    """The verdict, a number of each kind, the rows at either end, what must not be overlooked, and what to do next."""
    judged, evaluated = run.record["verdict"], (run.evaluation or {}).get("dev", {})
    yield verdict(judged)
    if "reward" in judged:
        yield from _reward(judged["reward"])
    change = judged["change"]
    interval = f"change {change['value']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f}, {change['n']} rows)"
    yield f"dev loss   {judged['dev_loss_base']:.4f} -> {judged['dev_loss']:.4f}, {interval}", ""
    for metric, description in list(evaluated.get("metrics", {}).items())[:1]:
        name = on_one_line(short_name(metric))
        yield f"{name:<10} {scored(metric, description['scale'], evaluated, ('base',))}", ""
    yield from warnings(evaluated)
    if "ledger" in run.record:
        account, groups = run.record["ledger"], run.groups
        parts = ", ".join(f"{name} {value:+.2f}" for name, value in groups.items())
        fell = f"{account['guide_loss_start']:.4f} -> {account['guide_loss_end']:.4f}"
        yield f"guide loss {fell}, lowered by {parts} ({account['verdict']})", ""
        found = {name: column for name, column in account["columns"].items() if column["verdict"].startswith("at the")}
        yield from _columns(found)
        yield from _rows(run, 1)
    yield from after(run)


def full(run: Any, evaluated: list[Line]) -> Iterator[Line]:
    """Everything: the loss with its interval, `evaluated` (all metrics), the account by modules and rows."""
    judged = run.record["verdict"]
    yield verdict(judged)
    if "reward" in judged:
        yield from _reward(judged["reward"])
    change = judged["change"]
    yield f"dev loss   {judged['dev_loss_base']:.4f} -> {judged['dev_loss']:.4f} nats per target", ""
    interval = f"95 % interval {change['low']:+.4f} to {change['high']:+.4f}, {change['n']} rows"
    yield f"change     {change['value']:+.4f} ({interval})", ""
    yield from evaluated
    if "ledger" in run.record:
        yield from _account(run)
        yield from _columns(run.record["ledger"]["columns"])
        yield from _rows(run, 3)
    yield f"adapter    {run.folder.adapter} (best: step {judged['best_step']}), loads with PEFT alone", ""
    yield from after(run)


def after(run: Any) -> Iterator[Line]:
    """What to do next, by what came out."""
    if advice := ADVICE.get(run.record["verdict"]["verdict"]):
        yield f"advice     {advice}", ""
    report = run.folder.report / "index.html"
    folder = shlex.quote(str(run.path))
    yield f"report     {report if report.is_file() else f'ghosttune report {folder}'}", ""
    if run.config.task.answers:
        yield f"try        ghosttune chat {folder} --prompt {_quoted(run.predictions)}", ""


def to_the_studio(run: Any, search: str | None = None) -> Iterator[Line]:
    """How to see what is behind an answer, the first wrong one if there is any, and how to mend it.

    `search` finds the rows that taught it, where that is known.
    """
    folder, name = shlex.quote(str(run.path.parent)), run.path.name
    wrong = [row for row in run.predictions if row["scores"].get("exact_match") == 0]
    if not wrong:
        yield f"watch      ghosttune studio {folder}: this run, its rows and its answers in the browser", ""
        yield "mend       ghosttune quickstart --rumour learns a wrong fact, for you to find (docs/tutorial.md)", ""
        return
    yield f"wrong      {wrong[0]['example_id']} is answered {on_one_line(wrong[0]['output'])!r}", ""
    yield f"           right is {on_one_line(wrong[0]['references'][0])!r}", ""
    yield f"mend       ghosttune studio {folder}   prints an address; open it, and there the run {name}", ""
    found = search or "what is wrong in them"
    steps = {
        "see": 'under "Answers to the dev rows", the worst first: "ask why", then "Ask"',
        "why": '"This is wrong": write the right answer, then "Which rows speak against it?"',
        "mend": f'Rows: search for {found}, then "Drop all rows found" and "Train again with the patch"',
        "judge": "History: better or worse, with an interval (docs/tutorial.md, section 9)",
    }
    for number, (step, words) in enumerate(steps.items(), 1):
        yield f"           {number} {step:<5}  {words}", ""


def verdict(judged: dict[str, Any]) -> Line:
    """The sentence, with its note."""
    from ghosttune.reports.verdict import VERDICTS

    note = f" ({judged['note']})" if judged["note"] else ""
    return VERDICTS[judged["verdict"]] + note, "bold"


def evaluation(name: str, result: dict[str, Any]) -> Iterator[Line]:
    """Every number with its interval, and what it is against the baselines."""
    if "questions" in result:
        left_out = f", {result['left_out']:,} left out" if result["left_out"] else ""
        prompts = f"{result['questions']:,} prompt{'s' if result['questions'] != 1 else ''}"
        greedy = ", greedy answers" if "generation" in result else ""
        yield f"{name + ' ':<10} {prompts}{left_out}{greedy}", ""
    names = {metric: on_one_line(short_name(metric)) for metric in result.get("metrics", {})}
    width = max(map(len, names.values()), default=0)
    for metric, description in result.get("metrics", {}).items():
        yield f"{names[metric]:<{width}} {scored(metric, description['scale'], result)}", ""
    yield from _degenerate(result)
    if "judge" in result:
        yield _judge(result["judge"]), ""
    yield from ((line, "yellow") for line in _trained_on(result.get("contamination", {})))
    if "forgetting" in result:
        yield _forgotten(result["forgetting"]), ""


def warnings(result: dict[str, Any]) -> Iterator[Line]:
    """Of an evaluation, what must not be overlooked."""
    yield from (line for line in _degenerate(result) if line[1])
    yield from ((line, "yellow") for line in _trained_on(result.get("contamination", {})))


def scored(metric: str, scale: str, result: dict[str, Any], beside: tuple[str, ...] | None = None) -> str:
    """`41.2 (38.9 to 43.4), base 3.1: better, constant 12.0: better`; `beside` names the baselines, else all."""
    first, others = next(iter(result)), result["comparison"]
    found = result[first][metric]
    value, low, high = (_number(found[bound], scale) for bound in ("value", "low", "high"))
    shown = f"{value} ({low} to {high})"
    for other in others if beside is None else [name for name in others if name in beside]:
        against = others[other].get(metric)
        if metric in result[other]:
            value = _number(result[other][metric]["value"], scale)
            shown += f", {other} {value}" + (f": {against['verdict']}" if against else "")
    return shown


def extras(row: dict[str, Any]) -> str:
    """The row's own columns, those that say something."""
    own = {name: value for name, value in row.items() if name not in {*OUR_COLUMNS} - {"tokens"}}
    texts = {on_one_line(name): on_one_line(value) for name, value in own.items() if value not in (None, "", False)}
    said = ", ".join(f"{name}: {text if len(text) <= 60 else text[:59] + '…'}" for name, text in texts.items())
    return f" ({said})" if said else ""


def _reward(earned: dict[str, Any]) -> Iterator[Line]:
    own = earned["change"]
    interval = f"95 % interval {own['low']:+.3f} to {own['high']:+.3f}, {own['n']} prompts"
    yield f"reward     {earned['base']:.3f} -> {earned['adapter']:.3f} of greedy answers to dev prompts", ""
    yield f"           change {own['value']:+.3f} ({interval})", ""
    yield f"success    {earned['success_base']:.1%} -> {earned['success']:.1%}", ""


def _account(run: Any) -> Iterator[Line]:
    """What lowered the guide loss, and how far the account closes."""
    account = run.record["ledger"]
    drop = account["guide_loss_start"] - account["guide_loss_end"]
    yield (
        f"guide loss {account['guide_loss_start']:.4f} -> {account['guide_loss_end']:.4f} nats per target, "
        f"{account['change']['n']} rows ({account['verdict']})",
        "",
    )
    parts = ", ".join(f"{name} {value:+.4f}" for name, value in run.groups.items())
    yield f"           lowered by {parts}; residual {account['modules_residual']:+.4f} of {drop:+.4f}", ""
    terms = {title: account[name] for name, title in ROW_TERMS.items() if name in account}
    parts = ", ".join(f"{title} {value:+.4f}" for title, value in terms.items())
    yield f"           by rows: {parts}; residual {account['residual']:+.4f}", ""


def _columns(columns: dict[str, Any]) -> Iterator[Line]:
    """Where the rows stand that a column of the user's own marks."""
    for name, found in columns.items():
        auroc = found["auroc"]
        yield (
            f"{on_one_line(name):<10} {found['rows']} rows: {found['verdict']} by their standing, "
            f"AUROC {auroc['value']:.2f} (95 % interval {auroc['low']:.2f} to {auroc['high']:.2f})",
            "",
        )


def _rows(run: Any, lowest: int) -> Iterator[Line]:
    for title, rows in (("harmful", run.lowest_rows(lowest)), ("helpful", run.highest_rows(1))):
        for row in rows:
            yield f"{title}    {row['standing']:+.2f} {on_one_line(row['example_id'])}{extras(row)}", ""


def _degenerate(result: dict[str, Any]) -> Iterator[Line]:
    for system, found in result.get("degenerate", {}).items():
        if found["faults"]:
            counted = ", ".join(f"{count} {fault}" for fault, count in found["faults"].items())
            shown = ", ".join(on_one_line(example["example_id"]) for example in found["examples"])
            style = "yellow" if found["alarm"] and system != "base" else ""
            yield f"degenerate {found['share']['value']:.0%} of {system}: {counted} (such as {shown})", style


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


def _judge(found: dict[str, Any]) -> str:
    """How often who won, and how far the judge is to be trusted."""
    changed, agreement = found["changed_with_the_order"], found["agreement"]
    agreed = (
        f", {agreement['value']:.0%} agreement on {agreement['n']} pairs with one right answer" if agreement else ""
    )
    unread = f", {len(found['unread'])} verdicts not read" if found["unread"] else ""
    counted = f"{found['wins']} wins, {found['ties']} ties, {found['losses']} losses"
    trusted = f"{changed['value']:.0%} changed with the order{agreed}{unread}"
    return f"judge      {on_one_line(found['model'])}: {counted}; {trusted}"


def _trained_on(found: dict[str, Any]) -> list[str]:
    """What of the rows that judge the run was trained on."""
    from ghosttune.reports.verdict import trained_on

    if reason := found.get("not_checked"):
        return [f"whether these rows were trained on is not known: {on_one_line(reason)}"]
    named = ", ".join(on_one_line(one["example_id"]) for one in found.get("named", ())[:3])
    return [f"{note.partition(':')[0]}: {named}, …" for note in trained_on({"contamination": found})]


def _quoted(rows: list[dict[str, Any]]) -> str:
    prompt = rows[0]["prompt"] if rows else "Hello"
    return shlex.quote(prompt if len(prompt) < 200 else prompt[:80] + "…")
