"""One template: training, evaluation and chat see the same prompt, and every answer ends with its stop token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import (
    CASES,
    CHATML,
    NO_SYSTEM,
    ONLY_ASCII,
    SMALL,
    byte_level,
    encoder_for,
    question,
    record,
    template_for,
    tokenizer_called,
)

from ghosttune.data.encoding import Encoder
from ghosttune.data.records import Record, Turn
from ghosttune.data.templates import Template
from ghosttune.errors import ModelError

WORDS = [
    "Paris",
    "user",
    "assistant",
    "User:",
    "Assistant:",
    "model",
    "a",
    "7",
    "Lily's",
    "\n",
    "\n\n",
    " ",
    "  ",
    "[x]",
]
UNICODE = ["é", "£", "日本", "🎉", "👩‍🚀", "ي"]


def texts(ascii_only: bool) -> st.SearchStrategy[str]:
    words = st.lists(st.sampled_from(WORDS + ([] if ascii_only else UNICODE)), min_size=1, max_size=8)
    return words.map("".join).filter(str.strip)


def conversations(name: str) -> st.SearchStrategy[Record]:
    text = texts(name in ONLY_ASCII)
    system = st.just([]) if name in NO_SYSTEM else st.one_of(st.just([]), text.map(lambda said: [("system", said)]))
    exchange = st.tuples(text, text).map(lambda both: [("user", both[0]), ("assistant", both[1])])
    exchanges = st.lists(exchange, min_size=1, max_size=3).map(lambda some: [turn for pair in some for turn in pair])
    return st.tuples(system, exchanges).map(lambda both: record(*both[0], *both[1]))


def trained_runs(trained: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of every stretch of trained positions."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], trained, [False]]).astype(int)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_training_prompt_is_the_prompt_at_evaluation_and_in_chat(name: str, kind: str) -> None:
    encoder = encoder_for(name, kind)
    stop = encoder.template.tokenizer.convert_tokens_to_ids(encoder.template.stop_token)

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(conversations(name))
    def check(row: Record) -> None:
        features = encoder.encode([row]).features[0]
        answers = [place for place, turn in enumerate(row.turns) if turn.role == "assistant"]
        runs = trained_runs(features.trained)
        assert len(runs) == len(answers), "every assistant turn is trained, and nothing else"
        for place, (start, end) in zip(answers, runs, strict=True):
            assert encoder.prompt_ids(row.turns[:place]) == features.input_ids[:start].tolist()
            assert features.input_ids[end - 1] == stop
            assert stop in encoder.template.stop_token_ids
            said = encoder.template.tokenizer.decode(features.input_ids[start : end - 1].tolist())
            assert said.strip() == row.turns[place].content.strip()
        assert encoder.prompt_ids(row) == features.input_ids[: runs[-1][0]].tolist()

    check()


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[1] == "chat"])
def test_parts_give_the_ids_of_the_official_text(name: str, kind: str) -> None:
    encoder = encoder_for(name, kind)
    tokenizer = encoder.template.tokenizer
    system = [] if name in NO_SYSTEM else [("system", "Be brief.")]
    turns = [*system, ("user", "Where is Lily?"), ("assistant", "In France."), ("user", "Name the capital, user.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    official = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    expected = tokenizer(official, add_special_tokens=False).input_ids
    assert encoder.prompt_ids(record(*turns).turns) == expected

    single = tokenizer.apply_chat_template(messages[-1:], tokenize=False, add_generation_prompt=True)
    expected = tokenizer(single, add_special_tokens=False).input_ids
    assert encoder.prompt_ids(record(turns[-1]).turns) == expected
    if tokenizer.bos_token_id is not None and tokenizer.bos_token != tokenizer.eos_token:
        assert expected.count(tokenizer.bos_token_id) <= 1


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[1] == "plain"])
def test_a_plain_prompt_has_the_ids_the_tokenizer_gives_it(name: str, kind: str) -> None:
    encoder = encoder_for(name, kind)
    tokenizer = encoder.template.tokenizer
    prompt = "Once upon a time there was"
    assert encoder.prompt_ids(question(prompt, " Lily.")) == tokenizer(prompt).input_ids
    ids = encoder.encode([question(prompt, " Lily.")]).features[0].input_ids.tolist()
    assert ids == [*tokenizer(f"{prompt} Lily.").input_ids, tokenizer.eos_token_id]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_ids_decode_to_the_text_as_written(name: str, kind: str) -> None:
    """No space comes in where a part begins, also with tokenizers that put one before a text."""
    encoder = encoder_for(name, kind)
    tokenizer = encoder.template.tokenizer
    row = record(("user", "Who?"), ("assistant", "Lily"), ("user", "Where?"), ("assistant", "in France"))
    ids = encoder.encode([row]).features[0].input_ids.tolist()
    stop = encoder.template.stop_token
    if kind == "plain":
        whole = tokenizer(f"Who?Lily{stop}Where?in France{stop}").input_ids
    elif kind == "turns":
        whole = tokenizer(f"User: Who?\nAssistant: Lily{stop}\nUser: Where?\nAssistant: in France{stop}").input_ids
    else:
        messages = [{"role": turn.role, "content": turn.content} for turn in row.turns]
        official = tokenizer.apply_chat_template(messages, tokenize=False)
        official = official[: official.rfind(stop) + len(stop)]
        whole = tokenizer(official, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == tokenizer.decode(whole)


def test_system_and_question_are_told_apart_in_the_plain_kind() -> None:
    parts = template_for("small", "plain").prompt([Turn("system", "Be brief."), Turn("user", "Why?")])
    assert [part.text for part in parts] == ["Be brief.\n\nWhy?"]


def test_plain_text_is_trained_whole_with_its_end() -> None:
    encoder = encoder_for("small-gemma", "plain", loss_on="all")
    features = encoder.encode([record(("text", "Once upon a time"))]).features[0]
    tokenizer = encoder.template.tokenizer
    assert features.input_ids.tolist() == [*tokenizer("Once upon a time").input_ids, tokenizer.eos_token_id]
    assert features.trained.tolist() == [False] + [True] * (len(features) - 1)


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_plain_text_begins_as_the_tokenizer_begins_texts(kind: str) -> None:
    encoder = encoder_for("small-gemma", kind, loss_on="all")
    features = encoder.encode([record(("text", "Once"))]).features[0]
    assert features.input_ids[0] == encoder.template.tokenizer.bos_token_id


def test_the_pipeline_asks_with_the_training_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    from ghosttune.inference import pipeline

    asked: list[list[int]] = []
    monkeypatch.setattr(pipeline, "generate", lambda model, tokenizer, prompts, *_: asked.extend(prompts))
    monkeypatch.setattr(pipeline, "longest_input", lambda model: None)
    encoder = encoder_for("small-chatml", "chat")
    row = question("What is the capital of France?", "Paris")
    pipeline.Pipeline(object(), encoder, 8).generate(["What is the capital of France?"])
    features = encoder.encode([row]).features[0]
    assert asked == [features.input_ids[~features.trained].tolist()]


def chat_template_fault(template: str, row: Record) -> str:
    with pytest.raises(ModelError) as caught:
        Encoder(Template("chat", byte_level(SMALL, template)), 100, "completion").encode([row])
    assert "use data.template: turns" in str(caught.value)
    return str(caught.value)


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    rewriting = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last else m.content | upper }}")
    row = record(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert "rewrites earlier turns" in chat_template_fault(rewriting, row)
    forgetful = CHATML.replace("messages %}", "messages[-2:] %}")
    assert "rewrites earlier turns" in chat_template_fault(forgetful, row)


def test_a_template_without_a_stop_token_is_refused() -> None:
    assert "no special token behind an answer" in chat_template_fault(
        CHATML.replace("<|im_end|>", ""), question("a", "b")
    )


def test_a_template_that_thinks_first_is_refused() -> None:
    thinking = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    assert "behind its own generation prompt" in chat_template_fault(thinking, question("a", "b"))


def test_a_template_that_changes_answers_is_refused() -> None:
    shouting = CHATML.replace("{{ m.content }}", "{{ m.content | replace('bcd', 'BCD') }}")
    assert "behind its own" in chat_template_fault(shouting, question("a", "bcd"))


def test_turns_a_template_refuses_are_named_with_their_row() -> None:
    encoder = encoder_for("small-gemma", "chat")
    row = record(("system", "s"), ("user", "a"), ("assistant", "b"), example_id="row-7")
    with pytest.raises(ModelError, match=r"row-7: .*refuses the turns system, user, assistant: System role not supp"):
        encoder.encode([row])


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = byte_level(SMALL)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-text token"):
        Template("plain", tokenizer)


def test_the_stop_token_is_the_first_special_token_behind_an_answer() -> None:
    template = template_for("small-gemma", "chat")
    tokenizer = tokenizer_called("small-gemma")
    assert template.stop_token == "<end_of_turn>"
    ids = tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    assert template.stop_token_ids == sorted(ids)
    assert template_for("small-chatml", "plain").stop_token == "<eos>"
