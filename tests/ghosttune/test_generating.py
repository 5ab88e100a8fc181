"""Answers in batches equal answers alone, and nothing but the answer is decoded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_llama import small_llama

from ghosttune.errors import InputError
from ghosttune.inference import decoding, generating
from ghosttune.inference.decoding import decode
from ghosttune.inference.generating import answer_of, batches, generate
from ghosttune.inference.sampling import GREEDY, Sampling, chooser
from ghosttune.inference.sharing import shared_start

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing.:FutureWarning"
)  # PEFT 0.21 asks Transformers

VOCABULARY, STOP = 24, [2, 5, 9, 13]
TIE = 1e-4
"""Logits closer than this may change places with the order of float32 sums."""


def llama() -> Any:
    return small_llama(VOCABULARY, num_attention_heads=4, num_key_value_heads=2)


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=128))


def sliding() -> Any:
    """Attention that reaches back eight positions: padding in the middle would be counted."""
    from transformers import MistralConfig, MistralForCausalLM

    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return MistralForCausalLM(MistralConfig(vocab_size=VOCABULARY, sliding_window=8, **shape, **heads))


def prefixed() -> Any:
    """An adapter that puts learned keys and values before the prompt."""
    import peft

    return peft.get_peft_model(llama(), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))


MODELS = {"llama": llama, "gpt2": gpt2, "sliding": sliding, "prefixed": prefixed}


@pytest.fixture(params=MODELS)
def model(request) -> Any:
    torch.manual_seed(3)
    made = MODELS[request.param]()
    with torch.no_grad():  # answers that vary and end at different places
        for name, parameter in made.named_parameters():
            if "norm" not in name and "ln_" not in name:
                parameter.normal_(std=0.4)
    return made.eval()


def prompts_of(count: int = 12, shared: int = 0) -> list[list[int]]:
    random = torch.Generator().manual_seed(1)
    start = torch.randint(3, VOCABULARY, (shared,), generator=random).tolist()
    lengths = torch.randint(1, 20, (count,), generator=random).tolist()
    return [start + torch.randint(3, VOCABULARY, (length,), generator=random).tolist() for length in lengths]


def one_by_one(model: Any, prompt: list[int], count: int) -> list[int]:
    """The slow, obvious answer: a whole forward for every token, no cache, no padding."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + count:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in STOP:
                break
    return ids[len(prompt) :]


def agrees(model: Any, prompt: list[int], one: list[int], other: list[int]) -> bool:
    """Whether two greedy answers are the same up to a tie of the two best logits."""
    if one == other:
        return True
    place = next(place for place, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    with torch.no_grad():
        best = model(input_ids=torch.tensor([prompt + one[:place]])).logits[0, -1].topk(2).values
    return float(best[0] - best[1]) < TIE


@pytest.mark.parametrize("shared", [0, 20], ids=["own", "shared"])
def test_a_batch_answers_as_each_row_alone(model, shared) -> None:
    prompts = prompts_of(shared=shared)
    together = decode(model, prompts, STOP, 24, chooser(GREEDY))
    assert len({len(row) for row in together}) > 2, "rows end at different places, so that some leave early"
    for prompt, row in zip(prompts, together, strict=True):
        assert agrees(model, prompt, one_by_one(model, prompt, 24), row)
        assert agrees(model, prompt, decode(model, [prompt], STOP, 24, chooser(GREEDY))[0], row)


def test_finished_rows_are_not_computed_further(monkeypatch) -> None:
    torch.manual_seed(3)
    model, widths = llama().eval(), []
    model.register_forward_pre_hook(lambda _, inputs, given: widths.append(len(given["input_ids"])), with_kwargs=True)
    ends = {0: 2, 1: 4, 2: 9}
    left = {row: count for row, count in ends.items()}

    def watch(row: int, token: int) -> bool:
        left[row] -= 1
        return left[row] == 0

    rows = decode(model, [[5, 6], [7], [8, 9, 10]], [VOCABULARY - 1], 50, chooser(GREEDY), watch)
    assert [len(row) for row in rows] == [2, 4, 9]
    assert widths == [3] * 2 + [2] * 2 + [1] * 5


def test_like_lengths_are_answered_together_within_the_limit(monkeypatch) -> None:
    monkeypatch.setattr(generating, "BATCH_TOKENS", 40)
    prompts = [[1] * length for length in (3, 30, 9, 31, 8, 10, 100)]
    assert batches(prompts) == [[6], [3], [1], [5, 2, 4, 0]]


def test_order_is_kept_and_equal_prompts_are_asked_once(model, monkeypatch) -> None:
    asked: list[list[int]] = []
    original = decoding.decode
    monkeypatch.setattr(generating, "decode", lambda m, rows, *rest: asked.extend(rows) or original(m, rows, *rest))

    class Words:
        def decode(self, ids: list[int], **_: Any) -> str:
            return " ".join(map(str, ids))

    prompts = prompts_of(5)
    answers = generate(model, Words(), [*prompts, prompts[1], prompts[0]], STOP, 6)
    assert len(asked) == 5
    assert answers[5:] == [answers[1], answers[0]]
    alone = [generate(model, Words(), [prompt], STOP, 6)[0] for prompt in prompts]
    assert answers[:5] == alone


def test_only_new_tokens_and_no_stop_token_are_text(tiny_model) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    ids = tokenizer(" red boxes", add_special_tokens=False).input_ids
    stopped = answer_of(tokenizer, [*ids, tokenizer.eos_token_id], [tokenizer.eos_token_id])
    assert (stopped.text, stopped.tokens, stopped.stopped) == ("red boxes", len(ids) + 1, True)
    assert not answer_of(tokenizer, ids, [tokenizer.eos_token_id]).stopped


def test_the_shared_start_leaves_every_prompt_a_token_of_its_own() -> None:
    assert shared_start([[1] * 30, [1] * 20]) == 19
    assert shared_start([[1] * 30]) == 0, "one prompt shares with nobody"
    assert shared_start([[1] * 10, [1] * 20]) == 0, "too short to pay"


def test_drawn_answers_do_not_depend_on_the_batch(monkeypatch) -> None:
    torch.manual_seed(3)
    model, prompts = llama().eval(), prompts_of(8)
    drawn = Sampling(temperature=1.0, top_p=0.9, top_k=10, seed=7)
    words: Any = type("Words", (), {"decode": lambda self, ids, **_: " ".join(map(str, ids))})()
    together = generate(model, words, prompts, STOP, 12, drawn)
    alone = [
        generate(model, words, [prompt], STOP, 12, Sampling(1.0, 0.9, 10, 7 + place))[0]
        for place, prompt in enumerate(prompts)
    ]
    assert together == alone
    monkeypatch.setattr(generating, "BATCH_TOKENS", 25)
    assert generate(model, words, prompts, STOP, 12, drawn) == together
    assert generate(model, words, prompts, STOP, 12, Sampling(1.0, 0.9, 10, 8)) != together


def test_drawing_follows_the_shares_that_top_k_and_top_p_leave() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()

    def shares(**settings: Any) -> list[float]:
        choose = chooser(Sampling(temperature=1.0, seed=1, **settings))
        tokens = torch.cat([choose(logits, [0]) for _ in range(1000)])
        return (tokens.bincount(minlength=4) / 1000).tolist()

    # 1,000 draws: the standard error of a share is under 0.016
    assert shares() == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=0.06)
    assert shares(top_k=2) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.06)
    assert shares(top_p=0.8) == pytest.approx([0, 0.5 / 0.9, 0.15 / 0.9, 0.25 / 0.9], abs=0.06)
    assert shares(top_p=0.4) == [0, 1, 0, 0]


def test_settings_that_mean_nothing_are_refused_together() -> None:
    with pytest.raises(InputError, match=r"temperature is -1.*; top_p is 0.*; top_k is -2.*; seed is -1"):
        Sampling(-1, 0, -2, -1)


def test_training_mode_comes_back_also_when_the_forward_fails() -> None:
    model = llama().train()
    with pytest.raises(IndexError):
        decode(model, [[VOCABULARY + 5]], STOP, 4, chooser(GREEDY))
    assert model.training
