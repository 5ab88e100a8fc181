"""Intervals, comparisons, the constant answer and the alarm: what is said of numbers, and when nothing is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ghosttune.errors import DataError, InputError
from ghosttune.metrics.comparing import compared
from ghosttune.metrics.degenerate import alarm, faults, is_ok
from ghosttune.metrics.intervals import mcnemar
from ghosttune.metrics.judging import CONSTANT, constant, for_constant, judged, labels_of, needs, scores_of
from ghosttune.metrics.scoring import Corpus, Item, of_hits, of_mean, of_sums
from ghosttune.registry import METRICS


def test_the_bootstrap_of_a_mean_is_the_normal_one_for_many_rows():
    values = np.random.default_rng(0).normal(2.0, 3.0, 2000)
    found, half = of_mean(values.tolist()).interval, 1.96 * values.std() / np.sqrt(2000)
    assert (found.value, found.n) == (pytest.approx(values.mean()), 2000)
    assert (found.low, found.high) == (
        pytest.approx(values.mean() - half, abs=0.015),
        pytest.approx(values.mean() + half, abs=0.015),
    )


def test_a_share_has_wilsons_interval_and_is_not_certain_at_its_end():
    found = of_hits([True] * 60).interval
    assert found.high == 1.0 and found.low == pytest.approx(0.93983, abs=1e-5)


def test_intervals_are_the_same_every_time():
    values = [0.1, 0.5, 0.9, 0.2]
    assert of_mean(values).interval == of_mean(values).interval


def test_pairs_show_what_two_intervals_hide():
    """A small gain on every row, below the spread between rows: the intervals overlap, the difference is certain."""
    easy = np.random.default_rng(1).random(50)
    ours, theirs = of_mean((easy + 0.02).tolist()), of_mean(easy.tolist())
    assert ours.interval.low < theirs.interval.high
    found = compared(ours, theirs)
    assert found.verdict == "better" and found.change.value == pytest.approx(0.02)
    assert compared(ours, theirs, lower_is_better=True).verdict == "worse"
    assert compared(theirs, ours).verdict == "worse"


def test_mcnemar_against_its_closed_form():
    ours, theirs = np.array([True] * 9 + [False] + [True] * 20), np.array([False] * 9 + [True] + [True] * 20)
    assert mcnemar(ours, theirs) == pytest.approx(2 * (1 + 10) / 2**10)  # also statsmodels, exact=True
    assert mcnemar(ours, ours) == 1.0
    found = compared(of_hits(ours), of_hits(theirs))
    assert (found.test, found.verdict, found.p) == ("McNemar", "better", pytest.approx(0.021484375))
    assert compared(of_hits(ours[:6]), of_hits(theirs[:6])).verdict == "better"
    assert compared(of_hits(ours[:5]), of_hits(theirs[:5])).verdict == "not distinguishable"


def test_equal_systems_are_rarely_told_apart():
    random = np.random.default_rng(2)
    told = [
        compared(of_hits(random.random(60) < 0.5), of_hits(random.random(60) < 0.5)).verdict != "not distinguishable"
        for _ in range(200)
    ]
    assert np.mean(told) <= 0.06


def test_what_has_no_value_is_null_and_not_compared():
    nothing = of_sums(np.zeros((8, 1)), lambda sums: np.full(len(sums), math.nan))
    assert compared(nothing, nothing) is None
    found = judged({"adapter": {"auc": nothing}, "base": {"auc": nothing}}, ["auc"])
    assert found["adapter"]["auc"]["value"] is None and found["comparison"] == {"base": {}}


def corpus():
    truth = ["yes", "yes", "no", "yes", "no", "yes"]
    items = [Item(f"{answer}!", (answer,), label_nats={"yes": 1.0, "no": 2.0}) for answer in truth]
    return Corpus(items, ("no", "yes"))


def test_the_constant_answer_is_the_majoritys():
    names = ["accuracy", "macro_f1", "likelihood_accuracy", "stopped", "perplexity"]
    assert for_constant(names) == names[:3]
    best = constant(corpus())
    scores = scores_of(best, for_constant(names))
    assert best.items[0].output == "yes"
    assert {name: score.value for name, score in scores.items()} == {
        "accuracy": pytest.approx(4 / 6),
        "macro_f1": pytest.approx(0.4),
        "likelihood_accuracy": pytest.approx(4 / 6),
    }


def test_every_number_stands_beside_its_baselines():
    names = ["accuracy", "exact_match"]
    tuned, base = scores_of(corpus(), names), scores_of(constant(corpus()), names)
    found = judged({"adapter": tuned, "base": base, CONSTANT: base}, names)
    assert found["adapter"]["accuracy"] == {"value": 1.0, "low": pytest.approx(0.609667, abs=1e-5), "high": 1.0, "n": 6}
    assert found["comparison"]["base"]["accuracy"]["verdict"] == "not distinguishable", "two rows differ"
    assert set(found["comparison"]) == {"base", "constant"} and found["metrics"]["accuracy"]["source"] == "scikit-learn"
    assert found["details"]["adapter"]["accuracy"]["confusion"]["rows_are_truth"] == [[2, 0], [0, 4]]


def test_labels_are_few():
    assert labels_of([["b", "a"], ["a"]], ["accuracy"]) == ("a", "b")
    assert labels_of([[str(n)] for n in range(99)], ["bleu"]) == ()
    with pytest.raises(DataError, match="at most 50 different answers, and these have 99"):
        labels_of([[str(n)] for n in range(99)], ["likelihood_accuracy"])
    with pytest.raises(InputError, match="did you mean bleu"):
        needs(["blue"])


def test_every_metric_says_what_it_is():
    for entry in METRICS:
        assert entry.meaning.endswith(".") or len(entry.meaning) > 20, entry.name
        assert entry.settings.scale and entry.settings.source


# --- the alarm ---


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        ("abcd", False),
        ("a b c", True),  # five characters, three words
        ("a b ", False),
        ("ab cdefgh", False),  # two words
        ("ab cd ef", True),
        ("!! ?? ..", False),
        ("", False),
        ("   \n", False),
        ("é ü ñ", True),
    ],
)
def test_ok_or_not_at_each_threshold(text, ok):
    assert is_ok(text) == ok


LONG = "a long reference with many words in it"


@pytest.mark.parametrize(
    ("output", "prompt", "references", "stopped", "found"),
    [
        ("ok", "what?", [LONG], True, ["short"]),
        ("yes", "is it?", ["no"], True, []),
        ("", "what?", [LONG], False, ["short", "never stops"]),
        ("the cat sat " * 4, "what?", [LONG], True, ["repeats"]),
        ("the cat sat " * 3, "what?", [LONG], True, []),
        ("a line\n" * 4, "what?", [LONG], True, ["repeats"]),
        ("go go go " * 4, "sing", ["go go go " * 4], True, []),
        (f"Say {LONG} please now", f"Say {LONG} please now or never", [LONG], True, ["echoes the prompt"]),
        ("Say it now", "Say it now", [LONG], True, ["echoes the prompt"]),
        ("a perfectly fine answer", "what?", [LONG], True, []),
    ],
)
def test_what_is_wrong_with_an_answer(output, prompt, references, stopped, found):
    assert faults(output, prompt, references, stopped) == found


def test_the_alarm_has_a_share_counts_and_examples():
    rows = [(f"row-{n}", ["short", "never stops"] if n < 5 else []) for n in range(50)]
    found = alarm(rows)
    assert found["alarm"] and found["share"]["value"] == 0.1 and found["share"]["n"] == 50
    assert found["faults"] == {"short": 5, "never stops": 5}
    assert [row["example_id"] for row in found["examples"]] == ["row-0", "row-1", "row-2"]
    assert not alarm(rows[4:])["alarm"]
