"""The last lines of the quickstart: an answer that is wrong, and where to mend it."""

import re
from pathlib import Path
from types import SimpleNamespace

from ghosttune.cli.summary import to_the_studio
from ghosttune.studio.app import STATIC

RIGHT = {"example_id": "a", "output": "gold", "references": ["gold"], "scores": {"exact_match": 1}}
WRONG = {"example_id": "b", "output": "silver\n", "references": ["gold"], "scores": {"exact_match": 0}}


def lines(*predictions: dict, search: str | None = None) -> str:
    run = SimpleNamespace(path=Path("some runs/first"), predictions=predictions)
    return "\n".join(line for line, _ in to_the_studio(run, search))


def test_a_wrong_answer_is_shown_with_the_right_one():
    said = lines(RIGHT, WRONG)
    assert "b is answered 'silver" in said and "right is 'gold'" in said and "ghosttune studio 'some runs'" in said
    assert "the run first" in said and "search for what is wrong in them" in said
    assert "search for blue things" in lines(WRONG, search="blue things")


def test_what_is_to_be_pressed_stands_on_the_page():
    """Words in quotes are those of a button, a link or a heading."""
    page = " ".join(path.read_text(encoding="utf-8") for path in STATIC.glob("*.js"))
    named = re.findall(r'"([^"]+)"', lines(WRONG))
    assert len(named) == 7
    for words in named:
        start, _, end = words.partition(" rows found")  # a number stands between
        assert start in page and end in page, words


def test_where_nothing_is_wrong_the_rumour_is_named():
    assert "ghosttune quickstart --rumour" in lines() and "ghosttune studio 'some runs'" in lines()
