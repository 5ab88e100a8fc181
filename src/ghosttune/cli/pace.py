"""How fast a run goes and when it will be done, from the steps of this session."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

LINE_SECONDS = 5.0
"""Least time between two progress lines where there is no terminal."""

LONG_RUN_SHARE = 0.02
"""And least share of the time so far, so that a week of training is not a hundred thousand lines."""

WINDOW = 1000
"""Steps that speeds are taken from at most: phases change what a step costs."""


class Pace:
    """Speeds over a window that holds as many evaluations as the steps to come: one in `eval_steps`.

    A resumed run counts from where it goes on. What a step costs: one entry of a queue.
    """

    def __init__(self, max_steps: int, eval_steps: int, now: float):
        self.max_steps, self.eval_steps = max_steps, eval_steps
        self.step = 0
        self.started = self.line_at = now
        self._passed: deque[tuple[float, int, int]] = deque(maxlen=min(eval_steps, WINDOW) + 1)

    def passed(self, step: int, tokens: int, now: float) -> None:
        """Takes down that a step is done; `tokens` are those of all steps of this session."""
        self.step = step
        self._passed.append((now, step, tokens))

    @property
    def tokens_per_second(self) -> float | None:
        """None before the second step: the first one also warms up."""
        seconds, _, tokens = self._over()
        return tokens / seconds if seconds > 0 else None

    def seconds_left(self, now: float) -> float | None:
        """Until the last step, evaluations between them included; None before the second step."""
        seconds, steps, _ = self._over()
        if not steps:
            return None
        left = (self.max_steps - self.step) * seconds / steps
        return max(0.0, left - (now - self._passed[-1][0]))

    @property
    def steps_to_evaluation(self) -> int:
        """Steps until the next evaluation; 0 after the last one."""
        upcoming = min(self.max_steps, (self.step // self.eval_steps + 1) * self.eval_steps)
        return upcoming - self.step

    def line_is_due(self, now: float) -> bool:
        """Whether it is time for another line, which this takes as said."""
        if now - self.line_at < max(LINE_SECONDS, LONG_RUN_SHARE * (now - self.started)):
            return False
        self.line_at = now
        return True

    def described(self, loss: str, now: float) -> list[str]:
        """What there is to say after the bar, what matters most first."""
        left, tokens, steps = self.seconds_left(now), self.tokens_per_second, self.steps_to_evaluation
        parts = [
            loss,
            f"{clock(left)} left" if left is not None else "",
            f"{compact(tokens)} tokens/s" if tokens else "",
            f"evaluates in {steps} step{'s' * (steps > 1)}" if steps else "",
        ]
        return [part for part in parts if part]

    def _over(self) -> tuple[float, int, int]:
        """(seconds, steps, tokens) of the window."""
        if len(self._passed) < 2:
            return 0.0, 0, 0
        (start, first, before), (end, last, after) = self._passed[0], self._passed[-1]
        return end - start, last - first, after - before


def fitting(parts: Sequence[str], width: int) -> list[str]:
    """The first of the parts that stand on one line of so many columns, two blanks before each."""
    shown: list[str] = []
    for part in parts:
        width -= len(part) + 2
        if width < 0:
            break
        shown.append(part)
    return shown


def clock(seconds: float) -> str:
    """`0:07`, `12:30`, `3:05:00`, `2 d 4 h`."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def compact(number: float) -> str:
    """`7`, `840`, `12.4k`, `1.3M`."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"
