"""A batch that answers join and leave at any time: each answer is that of its prompt alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_llama import small_llama
from test_generating import MODELS, STOP, VOCABULARY, agrees, one_by_one

from ghosttune.inference.batching import RunningBatch, why_alone

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's and Transformers' about models this small


class Greedy:
    """An answer of the likeliest tokens, with the logits it was chosen by."""

    def __init__(self, prompt: list[int], most: int):
        self.prompt, self.most = prompt, most
        self.tokens: list[int] = []
        self.logits: list[torch.Tensor] = []

    def choose(self, logits: torch.Tensor) -> int:
        self.logits.append(logits)
        return int(logits.argmax())

    def add(self, token: int) -> bool:
        self.tokens.append(token)
        return token in STOP or len(self.tokens) == self.most


def lively(make: Callable[[], Any]) -> Any:
    """A model whose answers vary and end at different places."""
    torch.manual_seed(3)
    model = make()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "ln_" not in name:
                parameter.normal_(std=0.4)
    return model.eval()


def written(model: Any, answers: list[Greedy], seed: int) -> RunningBatch:
    """All of them, joining at times that are drawn."""
    draw, batch, waiting = random.Random(seed), RunningBatch(model), list(answers)
    while waiting or batch.rows:
        while waiting and draw.random() < 0.4:
            batch.join(waiting[0].prompt, [waiting.pop(0)])
        batch.step()
    return batch


def bloom() -> Any:
    """Positions by a slope over the distance, counted from the mask."""
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2))


def opt() -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    shape = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return OPTForCausalLM(OPTConfig(vocab_size=VOCABULARY, word_embed_proj_dim=16, **shape))


TOGETHER = {name: make for name, make in MODELS.items() if name != "prefixed"} | {"bloom": bloom, "opt": opt}


@pytest.mark.parametrize("family", TOGETHER)
def test_answers_are_those_of_each_prompt_alone(family) -> None:
    """Compared with a whole forward for every token; windows of eight are shorter than most rows."""
    model, draw = lively(TOGETHER[family]), random.Random(5)
    answers = [
        Greedy([draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(1, 24))], draw.randrange(1, 20))
        for _ in range(14)
    ]
    batch = written(model, answers, seed=1)
    assert why_alone(model) is None and not batch.rows
    assert len({len(one.tokens) for one in answers}) > 4, "they end at different places"
    for one in answers:
        assert agrees(model, one.prompt, one_by_one(model, one.prompt, one.most)[: one.most], one.tokens)


def test_logits_are_those_of_the_row_alone() -> None:
    model = lively(MODELS["llama"])
    answers = [Greedy([4 + n] * (1 + 5 * n), 12) for n in range(6)]
    written(model, answers, seed=2)
    for one in answers:
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([one.prompt + one.tokens[:-1]])).logits[0, len(one.prompt) - 1 :]
        assert torch.allclose(torch.stack(one.logits), alone, atol=1e-4)


def test_one_prompt_is_read_once_for_several_answers() -> None:
    model, widths = lively(MODELS["llama"]), []
    model.register_forward_pre_hook(
        lambda _, a, given: widths.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    batch, answers = RunningBatch(model), [Greedy([5, 6, 7], most) for most in (1, 3, 5)]
    batch.join([5, 6, 7], answers)
    assert [len(one.tokens) for one in answers] == [1, 1, 1] and len(batch.rows) == 2, "one has ended already"
    while batch.rows:
        batch.step()
    assert widths[0] == (1, 3) and set(widths[1:]) == {(2, 1), (1, 1)}
    assert answers[0].tokens == answers[2].tokens[:1] and answers[1].tokens == answers[2].tokens[:3]


def test_what_has_left_takes_no_room() -> None:
    model = small_llama(VOCABULARY, num_attention_heads=4, num_key_value_heads=2).eval()
    batch, long, short = RunningBatch(model), Greedy([5] * 60, 99), Greedy([6, 7], 99)
    batch.join(long.prompt, [long])
    batch.join(short.prompt, [short])
    batch.leave([long, long])
    assert batch.rows == [short] and [layer.keys.shape[-2] for layer in batch._cache.layers] == [2, 2]
    batch.leave([long])
    batch.step()
    assert short.tokens == one_by_one(model, short.prompt, 2)[: len(short.tokens)]
    batch.leave([short])
    batch.step()
    assert not batch.rows and batch._cache is None


def mamba() -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4))


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, d_model=16, d_ff=16, num_layers=1, num_heads=2))


def rwkv() -> Any:
    from transformers import RwkvConfig, RwkvForCausalLM

    return RwkvForCausalLM(RwkvConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2))


def careless() -> Any:
    """A model that looks at padding, whatever its masks say."""
    model = lively(MODELS["llama"])
    model.model.register_forward_pre_hook(
        lambda _, args, given: (args, {**given, "attention_mask": None}), with_kwargs=True
    )
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (mamba, "its layers keep LinearAttentionLayer, and not"),
        (t5, "it reads by an encoder"),
        (MODELS["prefixed"], "its adapter has learned a prompt"),
        (rwkv, "it does not keep the keys and values of its tokens"),
        (careless, "its answers change beside others that are longer"),
    ],
)
def test_who_answers_alone_is_said_with_the_reason(make, reason) -> None:
    assert (why_alone(make().eval()) or "").startswith(reason)
