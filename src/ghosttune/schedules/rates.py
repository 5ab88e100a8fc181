"""The learning rate of each update when there are phases."""

from __future__ import annotations

from collections.abc import Callable

from ghosttune.schedules.phases import Schedule

Curve = Callable[[float], float]
"""Updates made so far -> the factor on the peak learning rate that the run's curve has for the next one."""


def phase_rates(schedule: Schedule, index: int, curve: Curve, warmup: int, entering: bool) -> list[float]:
    """Factors on the peak learning rate for the updates of one phase.

    Without `schedule.equal_mass` the curve runs over the whole run, and a phase has the stretch of it that it covers.
    With it, each phase has the whole curve for itself (warm-up in the first phase alone), scaled so that every phase
    has the same learning-rate mass: the factors of all phases add up to those of the curve over the run.

    Args:
        schedule: the phases.
        index: which phase.
        curve: of the run; also asked between two updates.
        warmup: updates of the curve's own warm-up.
        entering: whether tensors enter with this phase, so that a `rewarm` acts.
    """
    phase, steps = schedule.phases[index], schedule.phases[-1].end
    ramp = phase.rewarm if entering else 0
    rises = [min(1.0, (done + 1) / ramp) if ramp else 1.0 for done in range(phase.steps)]
    if not schedule.equal_mass:
        return [phase.learning_rate_factor * curve(phase.start + done) * rise for done, rise in enumerate(rises)]
    origin = warmup if index else 0
    stretch = (steps - origin) / phase.steps
    own = [curve(origin + done * stretch) * rise for done, rise in enumerate(rises)]
    share = sum(curve(done) for done in range(steps)) / len(schedule.phases)
    scale = share / sum(own) if sum(own) else 0.0
    return [phase.learning_rate_factor * scale * rate for rate in own]
