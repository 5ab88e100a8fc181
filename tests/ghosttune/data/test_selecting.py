"""Rows are kept by score: how many, which of equals, within kinds; every row has a decision and a reason."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghosttune.data.selecting import drawn, keep_best, keep_beyond
from ghosttune.errors import InputError

SCORES = st.dictionaries(st.text("abcdefgh", min_size=1), st.one_of(st.none(), st.floats(-9, 9)), min_size=1)


def kept(decisions) -> list[str]:
    return [decision.example_id for decision in decisions if decision.kept]


def test_the_highest_stay_and_of_equals_the_earlier():
    scores = {"a": 1.0, "b": 3.0, "c": 1.0, "d": None, "e": 2.0, "f": 1.0}
    decisions = keep_best(scores, 4, "loss")
    assert kept(decisions) == ["a", "b", "c", "e"]
    assert [decision.example_id for decision in decisions] == list(scores)
    assert decisions[2].reason == "rank 4 of 5 by loss, of which 4 are kept"
    assert decisions[3].reason == "has no loss" and decisions[3].score is None
    assert kept(keep_best(scores, 2, "loss", lowest=True)) == ["a", "c"]
    assert kept(keep_best(scores, 0.5, "loss")) == ["a", "b", "e"]


@settings(deadline=None)
@given(SCORES, st.floats(0.01, 0.99), st.booleans())
def test_every_row_is_decided_and_no_kept_one_is_worse(scores, keep, lowest):
    scored = [name for name, score in scores.items() if score is not None]
    if not 0 < round(keep * len(scores)) <= len(scored):
        with pytest.raises(InputError, match="asks for"):
            keep_best(scores, keep, "score", lowest=lowest)
        return
    decisions = keep_best(scores, keep, "score", lowest=lowest)
    assert [decision.example_id for decision in decisions] == list(scores) and len(kept(decisions)) == round(
        keep * len(scores)
    )
    inside = [scores[name] for name in kept(decisions)]
    outside = [scores[name] for name in scored if name not in kept(decisions)]
    if outside:
        assert max(inside) <= min(outside) if lowest else min(inside) >= max(outside)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("xyz"), st.floats(-9, 9)), min_size=2, max_size=40), st.floats(0.05, 0.95))
def test_every_kind_keeps_its_share_and_the_total_is_the_same(rows, keep):
    scores = {f"row-{n}": score for n, (_, score) in enumerate(rows)}
    kinds = {f"row-{n}": kind for n, (kind, _) in enumerate(rows)}
    wanted = round(keep * len(rows))
    if not wanted:
        return
    chosen = kept(keep_best(scores, keep, "score", kinds=kinds))
    assert len(chosen) == wanted
    for kind in set(kinds.values()):
        own = [name for name in kinds if kinds[name] == kind]
        assert abs(sum(name in chosen for name in own) - wanted * len(own) / len(rows)) < 1


def test_thresholds_have_a_side():
    scores = {"a": 1.0, "b": 2.0, "c": None, "d": 3.0}
    assert kept(keep_beyond(scores, "loss", above=2.0)) == ["d"]
    assert kept(keep_beyond(scores, "loss", below=2.0)) == ["a"]
    assert kept(keep_beyond(scores, "loss", below=0.0)) == []
    reasons = [decision.reason for decision in keep_beyond(scores, "loss", above=2.0)]
    assert reasons == ["loss is not above 2", "loss is not above 2", "has no loss", "loss is above 2"]


def test_a_draw_is_even():
    rows = [f"row-{n}" for n in range(4000)]
    one, other = drawn(rows, 1), drawn(rows, 2)
    both = [name for name in rows if one[name] < 0.5 and other[name] < 0.5]
    assert abs(len(both) - 1000) < 4 * 750**0.5  # four standard errors of 4,000 draws at a quarter
