"""What a run says of itself while it goes on and when it ends, beside figures worked out by hand."""

from __future__ import annotations

import io

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from ghosttune.cli import summary
from ghosttune.cli.display import Display
from ghosttune.cli.pace import Pace, clock, compact, fitting
from ghosttune.config.loading import load_config
from ghosttune.workflows.quickstart import PROFILE, quickstart_config
from ghosttune.workflows.train import train

STEP, EVALUATION = 2.0, 30.0
"""Seconds that a step and an evaluation take below."""


def paced(steps: int, max_steps: int = 100, eval_steps: int = 10) -> tuple[Pace, float]:
    """A run of such steps of 50 tokens, after `steps` of them, and the time then."""
    now = 1000.0
    pace = Pace(max_steps, eval_steps, now)
    for step in range(1, steps + 1):
        now += STEP + (EVALUATION if step > 1 and (step - 1) % eval_steps == 0 else 0.0)
        pace.passed(step, 50 * step, now)
    return pace, now


def test_time_left_holds_the_evaluations_to_come():
    """Between step 35 and step 100 lie 65 steps and those evaluations after 40, 50, ... 90."""
    pace, now = paced(35)
    assert pace.seconds_left(now) == pytest.approx(65 * STEP + 6.5 * EVALUATION)
    assert pace.seconds_left(now + 5) == pytest.approx(65 * STEP + 6.5 * EVALUATION - 5), "it counts down between steps"
    assert pace.seconds_left(now + 10_000) == 0
    assert pace.tokens_per_second == pytest.approx(10 * 50 / (10 * STEP + EVALUATION))


def test_nothing_is_foretold_from_the_first_step_which_also_warms_up():
    pace, now = paced(1)
    assert pace.seconds_left(now) is None and pace.tokens_per_second is None
    assert pace.described("loss 1.0000", now) == ["loss 1.0000", "evaluates in 9 steps"]


def test_steps_to_the_next_evaluation():
    assert [paced(steps, 25)[0].steps_to_evaluation for steps in (0, 1, 9, 10, 19, 20, 24, 25)] == [
        *(10, 9, 1, 10, 1, 5, 1, 0)
    ]


def test_a_resumed_run_counts_from_where_it_goes_on():
    pace = Pace(100, 10, 0.0)
    for step, now in ((51, 9.0), (52, 11.0), (53, 13.0)):  # 9 s until the first step: loading and warming up
        pace.passed(step, 50 * (step - 50), now)
    assert pace.seconds_left(13.0) == pytest.approx(47 * 2.0) and pace.tokens_per_second == pytest.approx(25.0)


def test_lines_grow_rarer_as_a_run_grows_longer():
    pace, said = Pace(10**6, 100, 0.0), []
    said = [second for second in range(1, 7 * 86_400, 10) if pace.line_is_due(float(second))]
    assert said[0] == 11 and len(said) < 600, "a week is some hundred lines"
    assert said[-1] - said[-2] > 3600


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0:00"), (59.6, "1:00"), (750, "12:30"), (11_100, "3:05:00"), (187_200, "2 d 4 h")]
)
def test_clock(seconds, said):
    assert clock(seconds) == said


@pytest.mark.parametrize(("number", "said"), [(7, "7"), (999, "999"), (12_400, "12.4k"), (1_300_000, "1.3M")])
def test_compact(number, said):
    assert compact(number) == said


def test_only_what_stands_on_the_line_is_said():
    assert fitting(["ab", "cd", "ef"], 8) == ["ab", "cd"]
    assert fitting(["abcdefgh", "c"], 8) == []


@pytest.mark.parametrize(
    ("width", "said", "left_out"),
    [
        (140, "35/100  loss 0.1234  5:25 left  10 tokens/s  evaluates in 5 steps", None),
        (80, "35/100  loss 0.1234  5:25 left  10 tokens/s", "evaluates"),
        (60, "35/100  loss 0.1234  5:25 left  10 tokens/s", "evaluates"),
        (48, "35/100  loss 0.1234  5:25 left", "tokens/s"),
        (20, "35/100", "loss"),
    ],
)
def test_the_bar_is_one_line_of_any_terminal(monkeypatch, width, said, left_out):
    display, now = Display(), 0.0
    display.pace, now = paced(35)
    monkeypatch.setattr("ghosttune.cli.display.time.monotonic", lambda: now)
    display.loss = "loss 0.1234"
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    console.print(display)
    (line,) = console.file.getvalue().rstrip("\n").split("\n")
    assert said in line and len(line) <= width
    assert left_out is None or left_out not in line


@pytest.fixture
def run(make_config, tmp_path):
    measured = {"data__guide__rows": 4, "measure__ledger__guide_every": 2}
    config = make_config(train__max_steps=4, train__learning_rate=0.01, evaluate__limit=2, **measured)
    return train(config, tmp_path / "run")


def lines(display_of, *arguments, **options) -> list[str]:
    display = Display()
    display.console = Console(file=io.StringIO(), width=80, highlight=False, markup=False, emoji=False)
    getattr(display, display_of)(*arguments, **options)
    return display.console.file.getvalue().strip("\n").split("\n")


def test_the_short_summary_is_a_screen_and_the_long_one_holds_every_number(run):
    short, long = lines("summary", run), lines("summary", run, verbose=True)
    assert len(short) <= 10 < len(long)
    for said in (short, long):
        assert said[0].startswith("The adapter is ")
        assert f"ghosttune report {run.path}" in "\n".join(said) or "index.html" in "\n".join(said)
        assert [line.split()[0] for line in said if line.startswith(("harmful", "helpful"))].count("helpful") == 1
    judged = run.record["verdict"]
    fell = f"{judged['dev_loss_base']:.4f} -> {judged['dev_loss']:.4f}"
    assert sum(fell in line for line in short) == sum(fell in line for line in long) == 1
    assert any("residual" in line for line in long) and not any("residual" in line for line in short)
    assert any(line.startswith("try        ghosttune chat ") for line in short)


def test_advice_follows_the_verdict():
    from ghosttune.reports.verdict import VERDICTS

    assert {*summary.ADVICE} == {*VERDICTS} - {"better"}


def test_an_alarm_is_in_the_short_summary_too(run, monkeypatch):
    evaluation = run.evaluation or {}
    alarming = {"share": {"value": 0.5}, "faults": {"empty": 1}, "examples": [{"example_id": "dev-1"}], "alarm": True}
    found = {**evaluation["dev"], "degenerate": {"adapter": alarming}, "contamination": {"not_checked": "no files"}}
    monkeypatch.setattr(type(run), "evaluation", {"dev": found})
    said = "\n".join(lines("summary", run))
    assert "degenerate 50% of adapter: 1 empty (such as dev-1)" in said
    assert "whether these rows were trained on is not known: no files" in said


def test_the_commands_that_the_quickstart_says_hold_its_recipe():
    from ghosttune.cli.main import app

    written = CliRunner().invoke(app, ["init", "--profile", PROFILE]).output
    assert load_config(yaml.safe_load(written)) == quickstart_config()


def test_where_there_is_no_terminal_lines_say_the_same(make_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ghosttune.cli.pace.LINE_SECONDS", 0.0)
    monkeypatch.setattr("ghosttune.cli.pace.LONG_RUN_SHARE", 0.0)
    with Display() as display:
        train(make_config(train__max_steps=4), tmp_path / "run", listen=display.listen)
    said = capsys.readouterr().out
    assert "\x1b" not in said and "step 4/4" in said and "tokens/s" in said
    assert said.index("step 4/4") < said.index("judging the adapter beside the untouched base")
