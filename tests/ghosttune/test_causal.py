"""The task's loss is the cross entropy of the trained tokens, shifted once, per row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_llama import small_llama
from torch.nn.functional import cross_entropy

from ghosttune.data.encoding import IGNORED, Collator, Features
from ghosttune.tasks.causal import CausalTask

EOS = 2
VOCABULARY = 31


def llama(tied: bool) -> Any:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return small_llama(VOCABULARY, tie_word_embeddings=tied, pad_token_id=None, **heads)


def gpt2(tied: bool) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    return GPT2LMHeadModel(config)


MODELS = {"llama": llama, "gpt2": gpt2}


def model_of(kind: str, tied: bool) -> Any:
    torch.manual_seed(5)
    return MODELS[kind](tied).double().eval()


def rows() -> list[Features]:
    """Unequal lengths; several trained stretches; the stop token, which is also the padding, inside and at the end."""
    random = np.random.default_rng(3)
    made = []
    for index, length in enumerate((9, 4, 17, 2)):
        ids = random.integers(3, VOCABULARY, length).astype(np.int32)
        ids[-1] = EOS
        trained = random.random(length) < 0.5
        trained[0], trained[-1] = False, True
        if length > 10:
            ids[5], trained[4:6], trained[6] = EOS, True, False
        made.append(Features(index, str(index), ids, trained))
    return made


def full_logits_losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same from all logits of the model, row by row without padding, shifted by hand."""
    losses = []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        length = int(mask.sum())
        logits = model(input_ids=ids[None, :length]).logits[0]
        losses.append(cross_entropy(logits[:-1], labels[1:length], reduction="sum", ignore_index=IGNORED))
    return torch.stack(losses)


CASES = [(kind, tied) for kind in MODELS for tied in (True, False)]


@pytest.mark.parametrize(("kind", "tied"), CASES)
def test_the_loss_is_the_cross_entropy_of_each_row(kind: str, tied: bool) -> None:
    model, batch = model_of(kind, tied), Collator(EOS)(rows())
    losses = CausalTask().example_loss(model, batch)
    assert losses.dtype == torch.float64, "a float64 model gives float64 losses"
    torch.testing.assert_close(losses, full_logits_losses(model, batch), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("kind", "tied"), CASES)
def test_the_model_given_the_labels_agrees(kind: str, tied: bool) -> None:
    """Transformers shifts labels itself: agreeing with it means that nobody shifts twice."""
    model, batch = model_of(kind, tied), Collator(EOS)(rows())
    ours = CausalTask().example_loss(model, batch).sum()
    targets = (batch["labels"][:, 1:] != IGNORED).sum()
    theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    torch.testing.assert_close(ours / targets, theirs.double(), rtol=1e-6, atol=0)
    shifted = torch.roll(batch["labels"], -1, 1)
    twice = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=shifted).loss
    assert abs((ours / targets - twice).item()) > 1e-3, "the test tells a double shift apart"


@pytest.mark.parametrize(("kind", "tied"), CASES)
def test_gradients_are_those_of_the_full_logits(kind: str, tied: bool) -> None:
    model, batch = model_of(kind, tied), Collator(EOS)(rows())
    weights = torch.arange(1.0, len(rows()) + 1, dtype=torch.float64)
    parameters = list(model.parameters())
    ours = torch.autograd.grad((CausalTask().example_loss(model, batch) * weights).sum(), parameters)
    theirs = torch.autograd.grad((full_logits_losses(model, batch) * weights).sum(), parameters)
    for name, left, right in zip(dict(model.named_parameters()), ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", MODELS)
def test_a_batch_gives_what_its_rows_give_alone(kind: str) -> None:
    model, task = model_of(kind, True), CausalTask()
    together = task.example_loss(model, Collator(EOS)(rows()))
    alone = torch.cat([task.example_loss(model, Collator(EOS)([row])) for row in rows()])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)
    other_padding = task.example_loss(model, Collator(7)(rows()))
    torch.testing.assert_close(together, other_padding, rtol=1e-12, atol=0)


def test_a_half_precision_model_gives_float32_losses() -> None:
    model = model_of("llama", True).bfloat16()
    assert CausalTask().example_loss(model, Collator(EOS)(rows())).dtype == torch.float32


def test_only_supervised_positions_reach_the_head_and_the_hook_goes() -> None:
    model, batch = model_of("llama", False), Collator(EOS)(rows())
    seen: list[torch.Size] = []
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    CausalTask().example_loss(model, batch)
    assert seen == [(sum(row.targets for row in rows()), VOCABULARY)]
    handle.remove()
    assert not model.lm_head._forward_pre_hooks
    assert model(input_ids=batch["input_ids"]).logits.shape == (*batch["input_ids"].shape, VOCABULARY)


def test_the_hook_goes_also_when_the_forward_fails() -> None:
    model, batch = model_of("llama", False), Collator(EOS)(rows())
    with pytest.raises(IndexError):
        CausalTask().example_loss(model, {**batch, "input_ids": batch["input_ids"] + VOCABULARY})
    assert not model.lm_head._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT 0.21 asks Transformers 5.23
@pytest.mark.parametrize("kind", MODELS)
def test_an_adapter_also_on_the_head_gives_the_same(kind: str) -> None:
    import peft

    config = peft.LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    adapted = peft.get_peft_model(model_of(kind, False), config).double().eval()
    batch = Collator(EOS)(rows())
    losses = CausalTask().example_loss(adapted, batch)
    torch.testing.assert_close(losses, full_logits_losses(adapted, batch), rtol=1e-10, atol=0)
    with adapted.disable_adapter(), torch.no_grad():
        assert not torch.allclose(losses, CausalTask().example_loss(adapted, batch))
