"""Rows of preferences in the columns of TRL and of LLaMA-Factory, and what of them is trained, token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preference_texts import builtin_tokenizer, texts_of

from ghosttune.config.sections.data import DataSettings, SourceSettings
from ghosttune.data.content import content
from ghosttune.data.pairing import PreferenceEncoder
from ghosttune.data.records import Records
from ghosttune.data.sources import open_source
from ghosttune.data.templates import Template
from ghosttune.errors import DataError

SHARED = Path(__file__).parents[4] / "shared" / "data" / "instruct"

ASKED, GOOD, BAD = "What is the sea?", "Water and salt.", "A lamp."


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def told(role: str, value: str) -> dict[str, str]:
    return {"from": role, "value": value}


USER, BETTER, WORSE = said("user", ASKED), said("assistant", GOOD), said("assistant", BAD)

PAIRS: dict[str, dict[str, Any]] = {
    "trl, strings": {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
    "trl, messages": {"prompt": [USER], "chosen": [BETTER], "rejected": [WORSE]},
    "trl, implicit prompt": {"chosen": [USER, BETTER], "rejected": [USER, WORSE]},
    "trl, prompt said twice": {"prompt": ASKED, "chosen": [USER, BETTER], "rejected": [USER, WORSE]},
    "messages and texts": {"messages": [USER], "chosen": GOOD, "rejected": BAD},
    "llama-factory, sharegpt": {
        "conversations": [told("human", ASKED)],
        "chosen": told("gpt", GOOD),
        "rejected": told("gpt", BAD),
    },
    "llama-factory, alpaca": {"instruction": ASKED, "chosen": GOOD, "rejected": BAD},
    "llama-factory, ranked": {"instruction": ASKED, "input": "", "output": [GOOD, BAD]},
}

SINGLE: dict[str, dict[str, Any]] = {
    "trl, strings": {"prompt": ASKED, "completion": GOOD, "label": True},
    "trl, messages": {"prompt": [USER], "completion": [BETTER], "label": True},
    "a conversation": {"messages": [USER, BETTER], "label": True},
    "llama-factory, sharegpt": {"conversations": [told("human", ASKED), told("gpt", GOOD)], "kto_tag": True},
    "llama-factory, alpaca": {"instruction": ASKED, "input": "", "output": GOOD, "kto_tag": "true"},
}

FORMATS = {"preference": ("preference",), "unpaired_preference": ("unpaired_preference", "preference")}


def records(folder: Path, rows: list[dict[str, Any]], kind: str = "preference") -> Records:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_source(SourceSettings(path=str(path)), FORMATS[kind])
    assert source.row_format == kind
    return source.records


@pytest.fixture(scope="module")
def encoder() -> PreferenceEncoder:
    return PreferenceEncoder(Template("plain", builtin_tokenizer()), DataSettings().max_length)


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_the_same_in_every_format(name, tmp_path, encoder) -> None:
    (row,) = encoder.encode(records(tmp_path, [PAIRS[name]])).features
    tokenizer = encoder.tokenizer
    stop, opening = tokenizer.eos_token, encoder.template.opening
    expected = {"chosen": GOOD + stop, "rejected": BAD + stop}
    assert {part: texts_of(tokenizer, ids, trained) for part, ids, trained in parts(encoder, row)} == {
        part: (opening + ASKED, answer) for part, answer in expected.items()
    }
    assert row.targets == 1


def parts(encoder: PreferenceEncoder, row: Any) -> list[tuple[str, list[int], list[bool]]]:
    return [(marked.part, marked.input_ids, marked.trained) for marked in encoder.marked(row)]


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("wanted", [True, False])
def test_a_single_answer_is_the_same_in_every_format(name, wanted, tmp_path, encoder) -> None:
    given = SINGLE[name]
    column = "label" if "label" in given else "kto_tag"
    (row,) = encoder.encode(records(tmp_path, [{**given, column: wanted}], "unpaired_preference")).features
    ((part, ids, trained),) = parts(encoder, row)
    assert part == ("chosen" if wanted else "rejected")
    assert texts_of(encoder.tokenizer, ids, trained)[1] == GOOD + encoder.tokenizer.eos_token


def test_texts_that_begin_alike_have_that_as_their_prompt(tmp_path, encoder) -> None:
    (record,) = records(tmp_path, [{"chosen": "The sea is water.", "rejected": "The sea is a lamp."}])
    assert content(record) == {"prompt": "The sea is", "chosen": " water.", "rejected": " a lamp."}


def test_of_a_conversation_only_the_last_answer_is_trained(tmp_path) -> None:
    tokenizer = builtin_tokenizer()
    encoder = PreferenceEncoder(Template("turns", tokenizer), 512)
    history = [said("system", "Be brief."), said("user", "Hello"), said("assistant", "Good day."), USER]
    (record,) = records(tmp_path, [{"prompt": history, "chosen": [BETTER], "rejected": [WORSE]}])
    (row,) = encoder.encode([record]).features
    for (_, ids, trained), answer in zip(parts(encoder, row), (GOOD, BAD), strict=True):
        given, made = texts_of(tokenizer, ids, trained)
        assert made.strip() == answer + tokenizer.eos_token
        assert "Good day." + tokenizer.eos_token in given
        assert "Be brief." in given
    assert content(record)["prompt"] == history


def test_what_a_row_says_reads_back_as_the_same_row(tmp_path, encoder) -> None:
    rows = [{**PAIRS["trl, strings"], "margin": 2.5}, {**PAIRS["trl, messages"], "prompt": [said("system", "S"), USER]}]
    before = encoder.encode(records(tmp_path, rows)).features
    again = encoder.encode(records(tmp_path, [content(record) for record in records(tmp_path, rows)])).features
    for one, other in zip(before, again, strict=True):
        assert one.keys == other.keys  # type: ignore[attr-defined]
        assert one.margin == other.margin  # type: ignore[attr-defined]


def test_both_answers_of_a_long_row_lose_the_same_of_their_prompt(tmp_path) -> None:
    tokenizer = builtin_tokenizer()
    long = " ".join(f"word {n}" for n in range(60)) + "\nand now?"
    rows = [{"prompt": long, "chosen": GOOD, "rejected": BAD + " " + BAD}]
    whole = PreferenceEncoder(Template("plain", tokenizer), 512).encode(records(tmp_path, rows)).features[0]
    cut = PreferenceEncoder(Template("plain", tokenizer), 40).encode(records(tmp_path, rows))
    assert max(cut.features[0].lengths) == 40  # type: ignore[attr-defined]
    assert cut.cut_rows == [whole.example_id]
    given = [np.array(ids)[~trained].tolist() for ids, trained in cut.features[0].sequences()]  # type: ignore[attr-defined]
    assert given[0] == given[1]
    for before, after in zip(whole.sequences(), cut.features[0].sequences(), strict=True):  # type: ignore[attr-defined]
        assert before[0][before[1]].tolist() == after[0][after[1]].tolist(), "answers stay whole"
    with pytest.raises(DataError, match="answers are never cut"):
        PreferenceEncoder(Template("plain", tokenizer), 8).encode(records(tmp_path, rows))


def test_the_answer_of_another_row_stands_behind_the_own_prompt(tmp_path) -> None:
    encoder = PreferenceEncoder(Template("plain", builtin_tokenizer()), 512, mismatched=True)
    rows = [{"prompt": f"p{n}", "completion": f"answer {n}", "label": n % 2 == 0} for n in range(3)]
    found = encoder.encode(records(tmp_path, rows, "unpaired_preference")).features
    shown = [texts_of(encoder.tokenizer, *row.sequences()[-1]) for row in found]  # type: ignore[attr-defined]
    stop = encoder.tokenizer.eos_token
    assert [(given.removeprefix(encoder.template.opening), made) for given, made in shown] == [
        ("p0", "answer 2" + stop),
        ("p1", "answer 0" + stop),
        ("p2", "answer 1" + stop),
    ]
    assert [row.sides for row in found] == [(0, 2), (1, 2), (0, 2)]  # type: ignore[attr-defined]


FAULTS = {
    "chosen is empty": {"prompt": ASKED, "chosen": " ", "rejected": BAD},
    "rejected must be text, is 3": {"prompt": ASKED, "chosen": GOOD, "rejected": 3},
    "begin differently and there is no prompt": {"chosen": "Sea", "rejected": "Lamp"},
    "have no beginning in common": {"chosen": [USER, BETTER], "rejected": [said("user", "Who?"), WORSE]},
    "do not both begin with the prompt": {"prompt": "Who?", "chosen": [USER, BETTER], "rejected": [USER, WORSE]},
    "rejected must be one answer": {"prompt": [USER], "chosen": [BETTER], "rejected": []},
    "chosen must be an answer of the assistant": {"prompt": [BETTER], "chosen": [USER], "rejected": [WORSE]},
    "margin must be a number": {"prompt": ASKED, "chosen": GOOD, "rejected": BAD, "margin": "much"},
    "output must be two answers": {"instruction": ASKED, "output": [GOOD]},
    "message 0 has role": {"prompt": [said("narrator", "x")], "chosen": [BETTER], "rejected": [WORSE]},
}


@pytest.mark.parametrize("message", FAULTS)
def test_rows_that_cannot_be_used_say_why(message, tmp_path) -> None:
    with pytest.raises(DataError, match=message):
        records(tmp_path, [FAULTS[message]])


@pytest.mark.parametrize("given", ["maybe", None, 2])
def test_a_label_is_yes_or_no(given, tmp_path) -> None:
    with pytest.raises(DataError, match="label must be true or false"):
        records(tmp_path, [{"prompt": ASKED, "completion": GOOD, "label": given}], "unpaired_preference")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not there")
@pytest.mark.parametrize(
    ("name", "kind", "sides"),
    [("dpo_en_demo", "preference", {(0, 1): 300}), ("kto_en_demo", "unpaired_preference", {(0,): 150, (1,): 150})],
)
def test_the_demonstration_files_are_read(name, kind, sides) -> None:
    source = open_source(SourceSettings(path=str(SHARED / f"{name}.json.gz")), FORMATS[kind])
    assert source.row_format == kind
    assert source.has_turns
    encoded = PreferenceEncoder(Template("turns", builtin_tokenizer()), 1 << 15).encode(source.records[:])
    counts: dict[tuple[int, ...], int] = {}
    for record, row in zip(source.records, encoded.features, strict=True):
        own: Any = row
        counts[own.sides] = counts.get(own.sides, 0) + 1
        answers = [record.turns[-1].content, *([record.columns["rejected"]] if len(own.sides) == 2 else [])]
        for answer, (ids, trained) in zip(answers, own.sequences(), strict=True):
            made = texts_of(builtin_tokenizer(), ids, trained)[1]
            assert made.strip().startswith(answer.strip()[:20])
    assert counts == sides
