"""Rows that are too long lose context from the left; never the answer, the cue or the template's markup."""

from __future__ import annotations

import random
import re
import time

import pytest
from making import encoder_for, question, record

from ghosttune.data.encoding import Encoder
from ghosttune.data.records import Turn
from ghosttune.errors import DataError

DIALOGUE = "### Dialogue:\n" + " ".join(f"word{number}" for number in range(60)) + "\n\n### Summary:\n"


def long_row(example_id: str = "long") -> object:
    return question(DIALOGUE, "A short answer.", example_id)


@pytest.mark.parametrize("kind", ["plain", "turns", "chat"])
@pytest.mark.parametrize("name", ["small-chatml", "small-llama2", "gpt2-chatml", "stories260K-llama2", "builtin"])
def test_the_context_is_cut_from_the_left(name: str, kind: str) -> None:
    full = encoder_for(name, kind).encode([long_row()]).features[0]
    limit = len(full) - 40
    encoder = encoder_for(name, kind, limit)
    encoded = encoder.encode([long_row()])
    cut = encoded.features[0]
    tokenizer = encoder.template.tokenizer
    assert limit - 4 < len(cut) <= limit
    assert encoded.cut_rows == ["long"] and encoded.cut_tokens == len(full) - len(cut)
    assert cut.input_ids[cut.trained].tolist() == full.input_ids[full.trained].tolist()

    text, whole = tokenizer.decode(cut.input_ids.tolist()), tokenizer.decode(full.input_ids.tolist())
    before, context = whole.split("### Dialogue")[0], "word59\n\n### Summary:"
    assert text.startswith(before.rstrip(" ")), "markup before the context stays"
    assert text.endswith(whole[whole.index(context) :]), "the end of the context, the cue and the answer stay"
    assert "### Dialogue" not in text and "word0 " not in text


@pytest.mark.parametrize("kind", ["plain", "turns", "chat"])
def test_a_cut_training_prompt_is_the_prompt_with_that_room(kind: str) -> None:
    encoder = encoder_for("small-chatml", kind, 100)
    features = encoder.encode([long_row()]).features[0]
    answer = int(features.trained.sum())
    assert encoder.prompt_ids(long_row(), room=answer) == features.input_ids[~features.trained].tolist()
    assert len(encoder.prompt_ids(long_row(), room=30)) <= 70
    assert len(encoder.prompt_ids(long_row())) <= 100


@pytest.mark.parametrize("kind", ["plain", "turns", "chat"])
def test_the_cue_stays_when_all_context_must_go(kind: str) -> None:
    decode = encoder_for("small-chatml", kind).template.tokenizer.decode
    shortest = min(limit for limit in range(10, 120) if fits(kind, limit))
    ids = encoder_for("small-chatml", kind, shortest).encode([long_row()]).features[0].input_ids.tolist()
    assert "word" not in decode(ids) and "\n### Summary:" in decode(ids)
    assert decode(ids).count("A short answer.") == 1


def fits(kind: str, limit: int) -> bool:
    try:
        return len(encoder_for("small-chatml", kind, limit).encode([long_row()])) == 1
    except DataError:
        return False


@pytest.mark.parametrize("content", ["user", "<|im_start|>", "assistant", "s", "im"])
def test_words_that_also_occur_in_the_markup_do_not_cut_it(content: str) -> None:
    encoder = encoder_for("small-chatml", "chat", 60)
    row = record(("system", "long " * 30), ("user", content), ("assistant", "ok"))
    with pytest.raises(DataError, match="answer and cue need"):
        encoder.encode([row])
    fitting = record(("system", content), ("user", f"{content} " * 70), ("assistant", "ok"))
    ids = encoder.encode([fitting]).features[0].input_ids.tolist()
    text = encoder.template.tokenizer.decode(ids)
    assert text.startswith(f"<|im_start|>system\n{content}<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\nok<|im_end|>")


def test_later_questions_are_cut_after_earlier_ones() -> None:
    row = record(("user", "old " * 20), ("assistant", "one"), ("user", "new " * 20), ("assistant", "two"))
    full = encoder_for("small-chatml", "chat").encode([row]).features[0]
    few = encoder_for("small-chatml", "chat", len(full) - 10).encode([row]).features[0]
    many = encoder_for("small-chatml", "chat", 60).encode([row]).features[0]
    decode = encoder_for("small-chatml", "chat").template.tokenizer.decode
    assert 0 < decode(few.input_ids.tolist()).count("old") < 20 and decode(few.input_ids.tolist()).count("new") == 20
    assert decode(many.input_ids.tolist()).count("old") == 0 and decode(many.input_ids.tolist()).count("new") < 20
    assert few.targets == many.targets == full.targets


def test_a_character_of_several_tokens_is_never_halved() -> None:
    row = question("🎉" * 30, "ok")
    for limit in range(20, 60):
        ids = encoder_for("small", "plain", limit).encode([row]).features[0].input_ids.tolist()
        assert "�" not in encoder_for("small", "plain").template.tokenizer.decode(ids)


def test_too_many_cut_rows_are_refused_with_their_ids() -> None:
    encoder = encoder_for("small", "plain", 100)
    rows = [
        long_row("long-a"),
        question("short", "answer", "short-b"),
        long_row("long-c"),
        question("q", "a", "short-d"),
    ]
    with pytest.raises(DataError) as caught:
        encoder.encode(rows, truncated_share=0.4)
    for said in ("2 of 4 rows (50.0%)", "data.max_length 100", "long-a, long-c", "data.truncated_share: 0.51"):
        assert said in str(caught.value)
    assert encoder.encode(rows, truncated_share=0.5).cut_rows == ["long-a", "long-c"]
    with pytest.raises(DataError, match="2 of 4 rows"):
        encoder.encode(rows, truncated_share=0.0)


def test_answers_that_alone_are_too_long_are_refused_all_at_once() -> None:
    encoder = encoder_for("small", "plain", 30)
    rows = [question("q", "word " * 30, "bad-a"), question("q", "fine", "good"), question("q", "word " * 40, "bad-b")]
    with pytest.raises(DataError) as caught:
        encoder.encode(rows, truncated_share=1.0)
    message = str(caught.value)
    assert "2 of 3 rows do not fit into data.max_length 30" in message
    assert re.search(r"bad-a: answer and cue need \d+ tokens", message) and "bad-b: " in message
    assert "good" not in message


def test_a_very_long_row_is_cut_without_a_warning_of_the_tokenizer(caplog: pytest.LogCaptureFixture) -> None:
    encoder = encoder_for("gpt2", "plain", 200)
    features = encoder.encode([question("word " * 50_000 + "\nAnswer:", " yes")]).features[0]
    assert len(features) == 200
    assert features.targets == 2
    assert not caplog.records


def test_prompts_lose_whole_exchanges_first() -> None:
    encoder = encoder_for("small-chatml", "chat", 60)
    turns = [("system", "Be brief.")]
    for number in range(6):
        turns += [("user", f"question {number}"), ("assistant", f"answer {number}")]
    ids = encoder.prompt_ids(record(*turns, ("user", "the last question")).turns, room=5)
    text = encoder.template.tokenizer.decode(ids)
    assert len(ids) <= 55
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("<|im_start|>user\nthe last question<|im_end|>\n<|im_start|>assistant\n")
    assert "question 0" not in text and "answer 0" not in text


def conversation(exchanges: int, system: bool, lengths: random.Random) -> list[Turn]:
    turns = [("system", "Be brief.")] * system
    for number in range(exchanges):
        turns += [
            ("user", f"question {number} " * lengths.randrange(1, 4)),
            ("assistant", "yes " * lengths.randrange(4)),
        ]
    return list(record(*turns[:-1]).turns)


@pytest.mark.parametrize("system", [False, True])
def test_as_many_exchanges_stay_as_dropping_them_one_by_one_would_leave(system: bool) -> None:
    lengths = random.Random(3)
    for limit in (20, 130, 700):
        encoder = encoder_for("small-chatml", "chat", limit)
        for exchanges in (1, 2, 8, 9, 30):
            turns = conversation(exchanges, system, lengths)
            left = list(turns)
            while encoder.prompt_length(left) + 5 > limit and len(left) > 1 + system:
                del left[system : system + 2]
            assert encoder.recent_turns(tuple(turns), room=5) == tuple(left)


def test_the_end_of_a_conversation_without_end_is_found_at_once(slowness: float) -> None:
    encoder = encoder_for("small-chatml", "chat", 400)
    began = time.process_time()
    ids = encoder.prompt_ids(conversation(1500, True, random.Random(3)), room=5)
    assert 350 < len(ids) <= 395 and time.process_time() - began < 5 * slowness


def test_a_prompt_that_cannot_be_cut_enough_is_refused() -> None:
    encoder: Encoder = encoder_for("small-chatml", "chat", 30)
    with pytest.raises(DataError, match=r"the prompt needs \d+ tokens besides what can be cut.*max_length is 30"):
        encoder.prompt_ids(record(("system", "long " * 30), ("user", "why?")).turns)
    assert encoder.prompt_ids(record(("user", "why?")).turns, room=1000), "room is a wish, the prompt comes first"
