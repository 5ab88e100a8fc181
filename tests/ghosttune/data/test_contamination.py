"""Rows that judge and were trained on: against a count by Python's own sets, and what must raise no alarm."""

from __future__ import annotations

import json
import random

import pytest

from ghosttune import evaluate, report, train
from ghosttune.data.contamination import ANSWERED, ASKED, COMMON, DIRTY, GRAM, WORDED, contamination
from ghosttune.data.records import Record, Turn


def record(name: str, prompt: str, answer: str = "yes") -> Record:
    return Record(name, (Turn("user", prompt), Turn("assistant", answer)), prompt)


def shares(train: list[Record], judges: list[Record]) -> dict[str, float]:
    """Of each row, the share of its words that 13-grams of at most ten training rows hold, by the definition."""
    rows_with: dict[tuple[str, ...], set[str]] = {}
    for row in train:
        words = words_of(row)
        for at in range(len(words) - GRAM + 1):
            rows_with.setdefault(tuple(words[at : at + GRAM]), set()).add(row.example_id)
    found = {}
    for row in judges:
        words = words_of(row)
        met, common = set(), set()
        for at in range(len(words) - GRAM + 1):
            count = len(rows_with.get(tuple(words[at : at + GRAM]), ()))
            if count:
                (common if count > COMMON else met).update(range(at, at + GRAM))
        own = set(range(len(words))) - common
        found[row.example_id] = len(met & own) / len(own) if len(own) >= GRAM else 0.0
    return found


def words_of(row: Record) -> list[str]:
    return " ".join(turn.content for turn in row.turns).split()


@pytest.mark.parametrize("seed", range(3))
def test_n_grams_are_counted_as_defined(seed):
    draw = random.Random(seed)
    words = [f"w{n}" for n in range(300)]
    head = " ".join(words[:30])
    rows = [
        record(
            f"t{n}",
            f"{head} {' '.join(draw.choices(words, k=draw.randint(0, 40)))}",
            " ".join(draw.choices(words, k=4)),
        )
        for n in range(100)
    ]
    judges = []
    for n in range(60):
        like = draw.choice(rows)
        text = words_of(like)[30:-4]
        for _ in range(draw.randint(0, 4)):
            if text:
                text[draw.randrange(len(text))] = "other"
        opening = head if draw.random() < 0.5 else "another opening"
        judges.append(record(f"d{n}", f"{opening} {' '.join(text)}", like.reference or ""))
    found = contamination(rows, {"dev": judges})
    expected = shares(rows, judges)
    by_grams = {overlap.example_id: overlap for overlap in found.overlaps if overlap.kind == WORDED}
    exactly = {overlap.example_id for overlap in found.overlaps if overlap.kind != WORDED}
    assert len(by_grams) > 2, "the case holds some"
    assert {name for name, share in expected.items() if share >= DIRTY} - exactly == set(by_grams)
    assert all(overlap.share == pytest.approx(expected[name], abs=1e-3) for name, overlap in by_grams.items())
    assert found.rows == {"dev": 60} and found.short["dev"] == sum(len(words_of(row)) < GRAM for row in judges)


def test_each_row_is_named_once_with_the_training_row_it_is_like():
    text = "the quick brown fox jumps over the lazy dog while seven more animals look on in wonder"
    rows = [record("a", "Other question", "no"), record("b", "Say  RED\nnow", "red"), record("c", text, "so it is")]
    judges = [
        record("same", "say red now", "Red"),
        record("asked", "ＳＡＹ red now", "blue"),
        record("worded", f"{text}, or not", "so"),
        record("free", "Say red then", "red"),
    ]
    found = contamination(rows, {"dev": judges[:2], "test": judges[2:]})
    named = {one.example_id: (one.split, one.kind, one.train_example_id) for one in found.overlaps}
    assert named == {"same": ("dev", ANSWERED, "b"), "asked": ("dev", ASKED, "b"), "worded": ("test", WORDED, "c")}
    assert found.counts("dev") == {ANSWERED: 1, ASKED: 1} and found.counts("test") == {WORDED: 1}


def test_signs_tell_prompts_apart_and_scripts_without_spaces_have_words():
    assert contamination([record("a", "3 + 4")], {"dev": [record("b", "3 - 4")]}).overlaps == []
    chinese = "今天天气很好我们一起去公园散步吧然后回家"
    (found,) = contamination([record("a", f"{chinese}。")], {"dev": [record("b", f"问：{chinese}")]}).overlaps
    assert found.kind == WORDED and found.train_example_id == "a"


@pytest.mark.parametrize("rows", [[], [record("a", "")], [record("a", "short")]])
def test_nothing_is_found_where_there_is_nothing(rows):
    judges = [record("b", "something else"), record("c", "\u200b\ud83d\ude00 !?")]
    assert contamination(rows, {"dev": judges, "test": []}).overlaps == []
    assert contamination(rows, {}).rows == {}


def test_a_wording_of_many_rows_is_no_sign():
    head = "Answer the following question about colours as briefly as you can and do not explain your answer please:"
    rows = [record(f"t{n}", f"{head} what is {n}") for n in range(COMMON + 1)]
    assert contamination(rows, {"dev": [record("d", f"{head} what about this one")]}).overlaps == []
    (found,) = contamination(rows[:-1], {"dev": [record("d", f"{head} what about this one")]}).overlaps
    assert found.kind == WORDED


def test_a_run_counts_and_names_them(make_config, tmp_path):
    rows = [{"id": f"r{n}", "prompt": f"Say the word number {n}", "completion": f"word {n}"} for n in range(20)]
    judges = [{"id": f"d{n}", "prompt": f"Name the word number {n}", "completion": "word"} for n in range(6)]
    judges.append({"id": "heard", "prompt": "say the WORD number ７", "completion": "word 7"})
    paths = [tmp_path / "rows.jsonl", tmp_path / "dev.jsonl"]
    for path, content in zip(paths, (rows, judges), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    dev = {"data__dev__path": str(paths[1]), "data__dev__fraction": None}
    run = train(
        make_config(data__train__path=str(paths[0]), **dev, train__max_steps=2, train__warmup_steps=1), tmp_path / "run"
    )
    found = run.record["contamination"]
    assert found["splits"]["dev"] == {"rows": 7, "short": 7, "trained": {ANSWERED: 1}}
    (named,) = found["named"]
    assert (named["example_id"], named["train_example_id"]) == ("heard", "r7")
    assert "heard,prompt and answer,r7" in run.folder.export("contamination").read_text()
    page = report(run.path).read_text(encoding="utf-8")
    assert "1 of 7 dev rows were trained on" in page and "<td>heard</td>" in page
    again = evaluate(run.path, paths[1], out=tmp_path / "out")["data-dev"]["contamination"]
    assert again["splits"]["data-dev"]["trained"] == {ANSWERED: 1} and again["named"][0]["example_id"] == "heard"
    paths[0].unlink()
    assert (
        "rows.jsonl" in evaluate(run.path, paths[1], out=tmp_path / "out")["data-dev"]["contamination"]["not_checked"]
    )
