"""The shipped model is the one that its build record describes, and it has learned something."""

import hashlib
import json
import re
from pathlib import Path
from random import Random

import pytest

from ghosttune.models.builtin import BUILTIN_MODELS, builtin_model_folder

SCRIPTS = Path(__file__).parents[2] / "scripts"
FOLDER = builtin_model_folder("builtin:tiny")
BUILD = json.loads((FOLDER / "BUILD.json").read_text())


@pytest.fixture(scope="module")
def script():
    """The build script as a module, with one torch thread so that sums do not depend on the machine's load."""
    import torch

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        torch.set_num_threads(1)
        import build_builtin_model

        yield build_builtin_model
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_every_builtin_model_has_its_folder():
    assert all((builtin_model_folder(name) / "config.json").is_file() for name in BUILTIN_MODELS)


def test_shipped_files_are_those_of_the_build_record():
    shipped = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FOLDER.iterdir()}
    shipped.pop("BUILD.json")
    assert shipped == BUILD["files"]


def test_folder_is_small_and_holds_no_pickle():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 6_000_000
    assert {path.suffix for path in FOLDER.iterdir()} == {".json", ".safetensors"}


def test_generated_corpus_is_that_of_the_build_record(script):
    assert script.builtin_corpus.corpus_sha256() == BUILD["corpus"]["sha256"]


def test_held_out_scenes_are_none_of_the_training_scenes(script):
    def scenes(held_out: bool) -> set[tuple[str, str, str]]:
        drawn = (script.builtin_corpus.draw_slots(Random(seed), held_out) for seed in range(1000))
        return {(slots["P"], slots["it"], slots["place"]) for slots in drawn}

    assert len(scenes(True)) > 900
    assert not scenes(True) & scenes(False)


def test_parameter_count(model):
    assert 1_000_000 <= model.num_parameters() <= 3_000_000
    assert model.num_parameters() == BUILD["parameters"]


def test_held_out_loss_is_far_below_random_initialisation(script, model, tokenizer):
    documents = script.encoded(script.builtin_corpus.documents(held_out=True), tokenizer)
    recorded = BUILD["held_out_loss_nats_per_token"]
    random_model = script.new_model(len(tokenizer), script.RECIPE["seed"]).eval()
    # A hundredth of a nat: other processors sum in another order.
    assert script.held_out_loss(model, documents) == pytest.approx(recorded["trained"], abs=0.01)
    assert script.held_out_loss(random_model, documents) == pytest.approx(recorded["random_initialisation"], abs=0.01)
    assert recorded["trained"] < 0.25 * recorded["random_initialisation"]


def continuation(model, tokenizer, text: str) -> list[int]:
    """The new token ids of a greedy continuation, at most 200."""
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    return model.generate(ids, attention_mask=ids.new_ones(ids.shape), max_new_tokens=200)[0, ids.shape[1] :].tolist()


def test_stories_are_continued_in_words_of_the_corpus_and_end(script, model, tokenizer):
    corpus = script.builtin_corpus
    written = (corpus.story(random, corpus.draw_slots(random, False)) for random in map(Random, range(3000)))
    known = {word for story in written for word in re.findall(r"\w+", story)}
    told = []
    for start in (
        "Tom lived near the harbour. One",
        "Ivy ordered six blue cups from the shop. But",
        "It was his friend",
    ):
        new = continuation(model, tokenizer, "<bos>" + start)
        assert new[-1] == tokenizer.eos_token_id
        story = tokenizer.decode(new, skip_special_tokens=True)
        sentences = re.split(r"(?<=[.!?]) ", story)
        assert len(sentences) == len(set(sentences)) >= 4
        told += re.findall(r"\w+", story)
    # Not all of them: so small a model misspells a word now and then.
    assert sum(word in known for word in told) >= 0.97 * len(told)


def test_a_question_is_answered_from_the_passage(model, tokenizer):
    passage = "Nora wants seven green lamps. They go to the harbour on Monday. What colour are the lamps?"
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": passage}], add_generation_prompt=True, tokenize=False
    )
    answer = tokenizer.decode(continuation(model, tokenizer, prompt))
    assert answer == "The lamps are green.<eos>"


def test_special_tokens_are_distinct_single_tokens(script, tokenizer):
    ids = tokenizer.convert_tokens_to_ids(list(script.SPECIAL_TOKENS))
    assert ids == list(range(len(ids)))
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert [tokenizer(token, add_special_tokens=False)["input_ids"] for token in script.SPECIAL_TOKENS] == [
        [n] for n in ids
    ]


def test_generation_is_greedy_and_knows_its_tokens(model, tokenizer):
    generation = model.generation_config
    assert not generation.do_sample
    assert (generation.pad_token_id, generation.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


@pytest.mark.parametrize(
    "text",
    (
        "The Vaults pub near Café Adriatic has a 5 star rating. Prices start at £30.",
        "name[Blue Spice], eatType[coffee shop], area[city centre]",
        "Amanda: I baked  cookies :-)\r\n\tJerry: naïve “quotes” – 50 % & 1,234.56 €",
        " leading and trailing ",
        "日本語 and 🙂 and \u0000",
        "",
    ),
)
def test_any_text_comes_back_from_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_chat_prompt_is_a_prefix_of_the_chat_with_its_answer(tokenizer):
    messages = [
        {"role": "system", "content": "Answer in a full sentence."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "A model."},
        {"role": "user", "content": "Thanks!"},
        {"role": "assistant", "content": "You are welcome."},
    ]
    whole = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    for turns in (2, 4):
        prompt = tokenizer.apply_chat_template(messages[:turns], add_generation_prompt=True, return_dict=True)
        assert whole[: len(prompt["input_ids"])] == prompt["input_ids"]
    assert tokenizer.decode(whole) == (
        "<bos><|system|>Answer in a full sentence.<eos><|user|>Who are you?<eos><|assistant|>A model.<eos>"
        "<|user|>Thanks!<eos><|assistant|>You are welcome.<eos>"
    )


def test_training_text_is_what_the_chat_template_writes(script, tokenizer):
    chats = [document for document in script.builtin_corpus.documents(held_out=True) if document[0]["role"] != "text"]
    for document in chats[:20]:
        assert script.chat_text(document) == tokenizer.apply_chat_template(document, tokenize=False)


def test_only_text_and_the_assistants_turns_are_predicted_in_pretraining(script, tokenizer):
    chat = "<bos><|user|>Hi!<eos><|assistant|>Hello!<eos><bos>Some text.<eos><pad>"
    ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode([label for label in script.labels(ids) if label != -100]) == "Hello!<eos>Some text.<eos>"
