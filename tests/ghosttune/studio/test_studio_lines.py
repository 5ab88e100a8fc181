"""The last lines of the quickstart: an answer that is wrong, and where to mend it."""

from pathlib import Path
from types import SimpleNamespace

from ghosttune.cli.summary import to_the_studio


def lines(*predictions: dict) -> str:
    run = SimpleNamespace(path=Path("some runs/first"), predictions=predictions)
    return "\n".join(line for line, _ in to_the_studio(run))


def test_a_wrong_answer_is_shown_with_the_right_one():
    right = {"example_id": "a", "output": "gold", "references": ["gold"], "scores": {"exact_match": 1}}
    wrong = {"example_id": "b", "output": "silver\n", "references": ["gold"], "scores": {"exact_match": 0}}
    said = lines(right, wrong)
    assert "b is answered 'silver" in said and "right is 'gold'" in said and "ghosttune studio 'some runs'" in said


def test_where_nothing_is_wrong_the_rumour_is_named():
    assert "ghosttune quickstart --rumour" in lines() and "ghosttune studio 'some runs'" in lines()
