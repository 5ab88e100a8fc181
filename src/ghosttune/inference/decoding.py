"""New tokens for a batch of prompts; rows that are finished leave it.

Transformers prepares the model, its cache and its inputs (prompt-learning adapters change all three); the loop is ours,
because that of Transformers computes finished rows until the last one is done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from ghosttune.data.images import images_in, shown_inputs
from ghosttune.inference.sampling import Choose
from ghosttune.inference.sharing import empty_cache, fill, shared_start
from ghosttune.models.loading import without_upstream_warnings

if TYPE_CHECKING:
    import torch

LEAVING_SHARE = 0.1
"""Share of a batch that has to be finished before it leaves: making room copies the cache of all the others."""

SEEN = "mm_encoder_outputs"
"""What Transformers makes of images before the first forward."""

Watch = Callable[[int, int], bool]
"""Told each new token (which prompt, token) as soon as it is there; True ends that answer."""


def decode(
    model: Any,
    prompts: Sequence[list[int]],
    stop_token_ids: list[int],
    max_new_tokens: int,
    choose: Choose,
    watch: Watch | None = None,
) -> list[list[int]]:
    """The new token ids of each prompt, in order, the stop token included."""
    import torch
    from transformers import GenerationConfig

    answers = _Answers(len(prompts), set(stop_token_ids), max_new_tokens, watch)
    padding = stop_token_ids[0]  # masked: any token serves
    shares = shared_start(prompts) and not any(map(images_in, prompts))  # images come with the first pass of a row
    cache = empty_cache(model) if shares else None
    start = shared_start(prompts) if cache is not None else 0
    width = max(len(prompt) for prompt in prompts)
    gaps = [width - len(prompt) for prompt in prompts]
    filled = zip(prompts, gaps, strict=True)
    ids = torch.tensor([prompt[:start] + [padding] * gap + prompt[start:] for prompt, gap in filled])
    mask = torch.tensor([[1] * start + [0] * gap + [1] * (width - start - gap) for gap in gaps])
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=padding, eos_token_id=stop_token_ids
    )

    def loop(inner: Any, input_ids: torch.Tensor, generation_config: Any, **state: Any) -> torch.Tensor:
        _write(inner, input_ids, generation_config, state, choose, answers, once)
        return input_ids

    shown = shown_inputs(prompts, ids, mask)
    once = [SEEN, *(name for name, value in shown.items() if value.shape[:2] != ids.shape)]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), without_upstream_warnings():
            if cache is not None:
                fill(cache, model, prompts[0][:start], len(prompts))
            model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                **{name: value.to(model.device) for name, value in shown.items()},
                generation_config=settings,
                custom_generate=loop,
                past_key_values=cache,
            )
    finally:
        model.train(was_training)
    return answers.written


class _Answers:
    """What has been written, and by which rules an answer ends."""

    def __init__(self, count: int, stop_token_ids: set[int], max_new_tokens: int, watch: Watch | None):
        self.written: list[list[int]] = [[] for _ in range(count)]
        self.finished = [False] * count
        self._stop_token_ids, self._max_new_tokens, self._watch = stop_token_ids, max_new_tokens, watch

    def add(self, row: int, token: int) -> None:
        """One more token of an answer; none after its end."""
        if self.finished[row]:
            return
        self.written[row].append(token)
        unwanted = self._watch(row, token) if self._watch else False
        full = len(self.written[row]) == self._max_new_tokens
        self.finished[row] = unwanted or full or token in self._stop_token_ids


def _write(
    model: Any,
    ids: torch.Tensor,
    settings: Any,
    state: dict[str, Any],
    choose: Choose,
    answers: _Answers,
    once: Collection[str],
) -> None:
    """Adds tokens until every answer is finished; `state` is what Transformers hands from one forward to the next.

    `once` are what only the first forward reads; without a cache all do, and then no row may leave.
    """
    import torch

    rows = list(range(len(ids)))
    for unused in ("logits_processor", "stopping_criteria"):
        del state[unused]
    output = model._prefill(ids, settings, state)
    for name in once if state.get("use_cache") else ():
        state.pop(name, None)
    while True:
        state = model._update_model_kwargs_for_generation(output, state)
        tokens = choose(output.logits[:, -1], rows)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            answers.add(row, token)
        ids = torch.cat([ids, tokens[:, None]], dim=-1)
        going = [place for place, row in enumerate(rows) if not answers.finished[row]]
        if not going:
            return
        if len(rows) - len(going) >= LEAVING_SHARE * len(rows) and not any(name in state for name in once):
            places = torch.tensor(going, device=ids.device)
            ids, state = ids[places], _state_of(state, places, len(rows))
            rows = [rows[place] for place in going]
        inputs = model.prepare_inputs_for_generation(
            ids, next_sequence_length=1 if state.get("use_cache") else None, **state
        )
        output = model(**inputs, return_dict=True)


def _state_of(state: dict[str, Any], places: torch.Tensor, count: int) -> dict[str, Any]:
    """The state of some rows of the batch: its tensors with one entry per row, and the cache."""
    import torch
    from transformers import Cache

    kept = dict(state)
    for name, value in state.items():
        if name == "position_ids" and value.dim() == 3:  # [kind, B, T] of models that see
            kept[name] = value[:, places]
        elif isinstance(value, torch.Tensor) and value.dim() > 1 and len(value) == count:
            kept[name] = value[places]
        elif isinstance(value, Cache):
            value.reorder_cache(places)  # type: ignore[arg-type]
    return kept


def text_of(tokenizer: Any, ids: list[int], special: bool = False) -> str:
    """The words of new tokens, blanks as the model wrote them; special tokens only where they are asked for."""
    return tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
