"""The phase language: what a plan means, and what is wrong with one that means nothing."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghosttune.config.facts import ParameterFacts
from ghosttune.config.loading import load_config
from ghosttune.errors import ConfigError
from ghosttune.registry import STRATEGIES
from ghosttune.schedules.language import PlanError, chosen_layers, read_selection
from ghosttune.schedules.phases import Schedule, active_names, names_of, scheduled
from ghosttune.schedules.rates import phase_rates

LAYERS = 5
PARTS = {"attention": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}


def facts_of(layers: int = LAYERS, groups: tuple[str, ...] = ("attention", "mlp")) -> dict[str, ParameterFacts]:
    """LoRA's A and B on every projection of a Llama."""
    found = {}
    for layer, group in itertools.product(range(layers), groups):
        for role, factor in itertools.product(PARTS[group], "AB"):
            module = f"layers.{layer}.{group}.{role}_proj"
            name = f"{module}.lora_{factor}.weight"
            role_fact = role if group == "attention" else f"{role}_proj"
            found[name] = ParameterFacts(name, module, layer, group, factor, role_fact)
    return found


def meant(text: str, layers: int = LAYERS) -> set[str]:
    """What a selection means, as `layer.role.factor`."""
    schedule = scheduled(f"{text}@0-", 10, "keep")
    (names,) = active_names(schedule, facts_of(layers), layers, seed=1, still_zero=frozenset())
    facts = facts_of(layers)
    return {f"{facts[n].layer}.{n.split('.')[3].removesuffix('_proj')}.{facts[n].factor}" for n in names or ()}


def everything(layers: object = range(LAYERS), roles: str = "q k v o gate up down", factors: str = "AB") -> set[str]:
    return {f"{layer}.{role}.{factor}" for layer in layers for role in roles.split() for factor in factors}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", everything()),
        ("both", everything()),
        ("attention", everything(roles="q k v o")),
        ("attn", everything(roles="q k v o")),
        ("mlp", everything(roles="gate up down")),
        ("q,v", everything(roles="q v")),
        ("q_proj, gate", everything(roles="q gate")),
        ("layers 0-1", everything([0, 1])),
        ("layer 3", everything([3])),
        ("early", everything([0, 1])),
        ("late", everything([2, 3, 4])),
        ("top 2", everything([3, 4])),
        ("bottom 2", everything([0, 1])),
        ("top 40%", everything([3, 4])),
        ("late mlp", everything([2, 3, 4], "gate up down")),
        ("mlp late", everything([2, 3, 4], "gate up down")),
        ("late mlp, q layers 0-1", everything([2, 3, 4], "gate up down") | everything([0, 1], "q")),
        ("lora_B attention", everything(roles="q k v o", factors="B")),
    ],
)
def test_what_a_selection_means(text, expected):
    assert meant(text) == expected


@pytest.mark.parametrize(("layers", "half"), [(1, 0), (2, 1), (4, 2), (7, 3), (22, 11), (28, 14)])
def test_early_and_late_are_the_halves_of_any_model(layers, half):
    assert meant("early", layers) == everything(range(half)) if half else True
    assert meant("late", layers) == everything(range(half, layers))


def test_random_layers_follow_from_seed_and_phase():
    facts = facts_of(20)

    def drawn(seed: int, start: int) -> set[int | None]:
        schedule = scheduled(f"all@0-{start} > random 3@{start}-", 100, "keep")
        names = active_names(schedule, facts, 20, seed, frozenset())[1] or ()
        return {facts[name].layer for name in names}

    assert drawn(1, 10) == drawn(1, 10) and len(drawn(1, 10)) == 3
    assert len({frozenset(drawn(seed, start)) for seed in range(4) for start in (10, 20, 30)}) >= 10


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("both@0-300 > mlp@300-600 > attention@600-", [(0, 300), (300, 600), (600, 900)]),
        ("both@-300 > mlp@- 600>attention@600-900", [(0, 300), (300, 600), (600, 900)]),
        ("both@0-30% > mlp@30-60% > attention@60%-", [(0, 270), (270, 540), (540, 900)]),
        ("both@0- > mlp@300- > attention@50%-", [(0, 300), (300, 450), (450, 900)]),
        ("both@0-33.3% > mlp@-", [(0, 300), (300, 900)]),
        ("all@-", [(0, 900)]),
    ],
)
def test_which_updates_a_phase_covers(text, ends):
    schedule = scheduled(text, 900, "keep")
    assert [(phase.start, phase.end) for phase in schedule.phases] == ends
    for index, (start, end) in enumerate(ends):  # step s is the s-th update; a phase covers start + 1 … end
        assert {schedule.index(step) for step in (start + 1, end)} == {index}


def test_a_phase_says_how_it_is_entered_and_its_learning_rate():
    one, two, three = scheduled("both@0-10 > mlp@10-20 lr 0.5 keep > q@20- rewarm 5", 30, "reset").phases
    assert (one.entry, two.entry, three.entry) == ("reset", "keep", "rewarm 5")
    assert (one.learning_rate_factor, two.learning_rate_factor, three.rewarm) == (1.0, 0.5, 5)


BAD = {
    "both": "`@` and a range",
    "both@": "no range of updates",
    "both@300": "no range of updates",
    "both@0-300 >": "a phase is missing",
    "@0-300": "what trains is missing",
    "both,@0-": "what trains is missing",
    "top@0-": "needs a number",
    "layers a-b@0-": "needs layer numbers",
    "mlp!@0-": "names nothing that trains",
    "both@0-300 lr 0 > mlp@300-": "is none of",
    "both@0-300 warm > mlp@300-": "is none of",
    "both@0-300 -> mlp@300-600": "is none of",
    "both@0-100 > mlp@200-": "nothing trains in updates 101 to 200",
    "both@10-": "nothing trains in updates 1 to 10",
    "both@0-300 > mlp@300-600": "nothing trains in updates 601 to 900",
    "both@0-300 > mlp@200-": "before the phase in front of it ends",
    "both@0-1000": "outside the run's 900 updates",
    "both@0-120%": "outside the run's 900 updates",
    "both@5-5 > mlp@5-": "holds no update",
    "both@0-300 > mlp@300-200": "holds no update",
    "both@0- > mlp@-": "one of the two must say where",
    "both@0-10.5 > mlp@-": "whole numbers",
    "both@0-9 rewarm 10 > mlp@9-": "longer than the phase",
    "top 0.5@0-": "needs a number",
    "mlp@0-" + "9" * 5000: "no range of updates",
    "layers 0-99999999999@0-": "needs layer numbers",
    "mlp@0- rewarm " + "9" * 5000: "is none of",
    "mlp@0- lr 1e999": "is none of",
}


@pytest.mark.parametrize(("text", "said"), BAD.items())
def test_a_bad_plan_is_refused_with_the_place_marked(text, said):
    with pytest.raises(PlanError, match=said.replace("(", r"\(").replace("`", ".")) as error:
        scheduled(text, 900, "keep")
    *_, plan, marks = str(error.value).split("\n")
    assert plan.strip() == text.strip() and set(marks.strip()) <= {"^", " "} and "^" in marks


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("embedding@0-", "means none of the trained tensors"),
        ("q_prj@0-", "did you mean q_proj"),
        ("layers 3-9@0-", "layers 0 to 4"),
        ("top 6@0-", "the model has 5 layers"),
        ("q v@0-", "means none"),
        ("lora_A@0-10 > both@10-", "lora_A alone while its lora_B is zero"),
        ("lora_A attention@0-10 > both@10-", "lora_A alone while its lora_B is zero"),
        ("mlp@0-10 > lora_A attention@10-", "phase 2 trains lora_A alone"),
    ],
)
def test_a_plan_that_means_nothing_in_the_model_is_refused(text, said):
    facts = facts_of()
    zero = frozenset(name for name, fact in facts.items() if fact.factor == "B")
    with pytest.raises(PlanError, match=said):
        active_names(scheduled(text, 20, "keep"), facts, LAYERS, 1, zero)


def test_lora_a_may_train_alone_once_its_b_has():
    facts = facts_of()
    zero = frozenset(name for name, fact in facts.items() if fact.factor == "B")
    for text in ("lora_B@0-10 > lora_A@10-", "both@0-10 > lora_A mlp@10-"):
        assert len(active_names(scheduled(text, 20, "keep"), facts, LAYERS, 1, zero)) == 2
    assert active_names(scheduled("lora_A@0-", 20, "keep"), facts, LAYERS, 1, frozenset())


def config_of(phases: object, **settings: object) -> object:
    tree = {"data": {"train": {"path": "builtin:rows"}}, "train": {"max_steps": 300, **settings}, "phases": phases}
    return load_config(tree)


def test_a_list_is_the_same_plan():
    text = config_of("both@0-100 > mlp@-60% lr 0.5 rewarm 5 > q,v@60%-")
    parts = [
        {"train": "both", "start": 0, "end": 100},
        {"train": "mlp", "end": "60%", "lr": 0.5, "optimizer_state": "rewarm 5"},
        {"train": "q,v", "start": "60%"},
    ]
    built = [STRATEGIES["plan"].build(config.phases, 300) for config in (config_of(parts), text)]  # type: ignore[attr-defined]
    assert [(p.start, p.end, str(p.selection), p.entry) for p in built[0].phases] == [
        (p.start, p.end, str(p.selection), p.entry) for p in built[1].phases
    ]


def test_null_and_text_and_strategy_are_the_same_setting():
    assert config_of(None).phases.strategy == "none"  # type: ignore[attr-defined]
    assert config_of("both@0-").phases.plan == "both@0-"  # type: ignore[attr-defined]
    assert config_of({"plan": "both@0-"}).phases == config_of("both@0-").phases  # type: ignore[attr-defined]
    assert config_of({"strategy": "lisa", "layers": 1}).phases.layers == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "phases",
    [
        3,
        [],
        [{"train": "mlp", "ende": 5}],
        [{"train": "mlp", "start": 5, "end": "9%"}],
        {"strategy": "both->mlp"},
        "both@0-301",
    ],
)
def test_what_is_no_plan_is_reported_with_its_setting(phases):
    with pytest.raises(ConfigError, match=r"phases\.(plan|strategy)"):
        config_of(phases)


NAMED = {
    "attn->mlp->both": ["attention", "mlp", "both"],
    "both->mlp->attn": ["both", "mlp", "attention"],
    "both->mlp->both": ["both", "mlp", "both"],
    "early->late": ["early", "late"],
}


def strategy(name: str, steps: int = 300, **settings: object) -> Schedule:
    return STRATEGIES[name].build(config_of({"strategy": name, **settings}, max_steps=steps).phases, steps)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMED)
def test_a_strategy_does_what_its_name_says(name):
    schedule = strategy(name)
    assert [schedule.name(index) for index in range(len(schedule.phases))] == NAMED[name]
    count = len(NAMED[name])
    assert [phase.end for phase in schedule.phases] == [300 * (index + 1) // count for index in range(count)]


def test_boundaries_are_updates_or_per_cent():
    schedule = strategy("both->mlp->attn", boundaries=["20%", 200])
    assert [phase.end for phase in schedule.phases] == [60, 200, 300]
    schedule = strategy("both->mlp->attn", boundaries=[100, "60%"])
    assert [phase.end for phase in schedule.phases] == [100, 180, 300]
    with pytest.raises(ConfigError, match="needs 2 boundaries, and has 1"):
        strategy("both->mlp->attn", boundaries=[100])


def test_strategies_by_turns():
    cycle = strategy("cycle", steps=110, order=["mlp", "q,v"], period=50)
    assert cycle.text == "mlp@0-50 > q,v@50-100 > mlp@100-110"
    assert strategy("lisa", steps=50, layers=2, period=20).text == "random 2@0-20 > random 2@20-40 > random 2@40-50"
    with pytest.raises(ConfigError, match="makes 1,000,000 phases"):
        strategy("lisa", steps=10**6, period=1)
    down = strategy("top-down", steps=100, parts=4)
    assert down.text == "top 25%@0-25 > top 50%@25-50 > top 75%@50-75 > top 100%@75-100"


def test_a_guided_phase_chooses_by_what_was_measured():
    guided = strategy("guided", steps=300, period=100)
    assert [phase.end for phase in guided.phases] == [100, 200, 300] and guided.name(0) == "attention, mlp"
    choice = guided.phases[1].choice
    assert choice is not None
    assert choice.prefer({}, ["attention, mlp"]) == ("attention", "attention has no effective signal yet")
    assert choice.prefer({"attention": 1.0, "mlp": 2.0}, ["attention, mlp"])[0] == "mlp"
    assert choice.prefer({"attention": 3.0, "mlp": 2.0}, ["attention, mlp", "mlp"])[0] == "attention"


def test_under_the_ledger_a_part_that_rested_is_measured_again():
    choice = strategy("guided", period=50, signal="ledger").phases[1].choice
    assert choice is not None
    measured = {"attention": 1.0, "mlp": 2.0}
    assert choice.prefer(measured, ["attention, mlp", "mlp"])[0] == "mlp"
    part, reason = choice.prefer(measured, ["attention, mlp", "mlp", "mlp"])
    assert part == "attention" and "rested" in reason


def test_a_signal_that_nothing_measures_is_refused():
    tree = {"data": {"train": {"path": "builtin:rows"}}, "phases": {"strategy": "guided"}}
    with pytest.raises(ConfigError, match=r"phases\.signal: is effective, which nothing measures"):
        load_config({**tree, "measure": {"norms": {"effective": None}}})
    with pytest.raises(ConfigError, match=r"phases\.signal: .* less often than phases\.period"):
        load_config({**tree, "phases": {"strategy": "guided", "period": 5}})


CUTS = st.lists(st.integers(1, 99), max_size=5, unique=True).map(sorted)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(CUTS, st.data())
def test_every_update_belongs_to_one_phase(cuts, data):
    ends = [0, *cuts, 100]
    words = [data.draw(st.sampled_from(["both", "mlp", "q,v", "late", "top 2"])) for _ in ends[1:]]
    text = " > ".join(f"{word}@{a}-{b}" for word, a, b in zip(words, ends[:-1], ends[1:], strict=True))
    schedule = scheduled(text, 100, "keep")
    for step in range(1, 101):
        index = schedule.index(step)
        assert ends[index] < step <= ends[index + 1]
        assert schedule.name(index) == words[index].replace(",", ", ")


def test_layers_beyond_every_model_cost_no_memory():
    assert chosen_layers("layers 1-999999999", 4, set(), ()) == {1, 2, 3}


def test_of_many_problems_ten_are_told():
    with pytest.raises(PlanError) as error:
        scheduled("both@0-1 > " * 1000 + "mlp@1-", 900, "keep")
    assert "and 989 more" in str(error.value) and len(error.value.problems) == 999


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet="abq@-0123 %>,lrs\n^\u00e9", max_size=30))
def test_any_text_is_a_plan_or_an_error_with_a_mark(text):
    try:
        schedule = scheduled(text, 50, "keep")
    except PlanError as error:
        assert error.problems
        return
    assert schedule.phases[-1].end == 50


def cosine(done: float) -> float:
    import math

    return done / 5 if done < 5 else 0.5 * (1 + math.cos(math.pi * (done - 5) / 95))


def test_rates_follow_the_runs_curve():
    schedule = scheduled("both@0-40 > mlp@40-70 lr 0.5 > both@70- rewarm 4", 100, "keep")
    one, two, three = (phase_rates(schedule, index, cosine, 5, index == 2) for index in range(3))
    assert one == [cosine(done) for done in range(40)]
    assert two == [0.5 * cosine(done) for done in range(40, 70)]
    ramp = [0.25, 0.5, 0.75] + [1.0] * 27
    assert three == [cosine(done) * rise for done, rise in zip(range(70, 100), ramp, strict=True)]


@pytest.mark.parametrize("text", ["both@0-40 > mlp@40-70 > both@70-", "both@0-10 > mlp@10- rewarm 4"])
def test_phases_can_have_equal_learning_rate_mass(text):
    schedule = scheduled(text, 100, "keep", equal_mass=True)
    count = len(schedule.phases)
    rates = [phase_rates(schedule, index, cosine, 5, index > 0) for index in range(count)]
    whole = sum(cosine(done) for done in range(100))
    assert [sum(own) for own in rates] == pytest.approx([whole / count] * count)
    assert rates[1][-1] < 0.05 * max(rates[1]), "a phase of its own falls to the end of the curve"


def test_a_selection_made_later_means_what_a_written_one_does():
    schedule = scheduled("both@0-10 > late mlp@10-", 20, "keep")
    facts = facts_of()
    _, written = active_names(schedule, facts, LAYERS, 1, frozenset())
    assert names_of(read_selection("late mlp"), schedule.phases[1], facts, LAYERS, 1) == written
