"""A batch that goes on: answers join it when they are asked for, and leave it when they end.

A prompt is read alone, exactly as a single answer's is; its keys and values then take a place beside the others', the
shorter ones padded in front. Positions are counted row by row, so that padding moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ghosttune.data.images import shown_inputs
from ghosttune.inference.padding import APART, ROW
from ghosttune.models.loading import without_upstream_warnings
from ghosttune.models.prompting import prompt_length

if TYPE_CHECKING:
    import torch

FOLLOWED = ("attention_mask", "position_ids")
"""Tensors of one row each that a model hands from one token to the next, and whose continuation is known here."""


class Row(Protocol):
    """An answer while it is written."""

    def choose(self, logits: torch.Tensor) -> int:
        """The next token, by logits [V]."""
        ...

    def add(self, token: int) -> bool:
        """Hears the next token; whether the answer has ended with it."""
        ...


class RunningBatch:
    """Answers of one model that are written together; `rows` are those that have not ended.

    Keys and values take `len(rows)` times the longest row. A row's logits are those of the row alone but for the order
    of float sums, which `why_alone` looks at for each model.
    """

    def __init__(self, model: Any):
        model.eval()
        self.rows: list[Row] = []
        self._model = model
        self._inner: Any = None
        self._cache: Any = None
        self._mask: Any = None
        """[B, T] of everything in the cache."""
        self._positions: Any = None
        """[…, B, 1] of the next tokens, once for each kind of position; None for a model that takes none."""
        self._tokens: Any = None
        """[B, 1]: chosen, not yet read."""

    def join(self, prompt: Sequence[int], rows: Sequence[Row]) -> None:
        """Reads a prompt, whose first tokens these answers hear at once; costs one forward of the prompt alone."""
        import torch

        with torch.no_grad():
            logits, state = self._read(prompt)
            tokens = [row.choose(logits) for row in rows]
            going = [place for place, row in enumerate(rows) if not row.add(tokens[place])]
            if going:
                self._take_in(state, [tokens[place] for place in going])
                self.rows += [rows[place] for place in going]

    def step(self) -> None:
        """One token for each row; those that end with it leave."""
        import torch

        if not self.rows:
            return
        with torch.no_grad():
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.rows), 1)], dim=1)
            state = {"attention_mask": self._mask, "past_key_values": self._cache, "use_cache": True}
            if self._positions is not None:
                state["position_ids"] = self._positions
            inputs = self._inner.prepare_inputs_for_generation(self._tokens, next_sequence_length=1, **state)
            logits = self._inner(**inputs, return_dict=True).logits[:, -1]
            tokens = [row.choose(own) for row, own in zip(self.rows, logits, strict=True)]
            ended = [row for row, token in zip(self.rows, tokens, strict=True) if row.add(token)]
            self._tokens = self._tokens.new_tensor(tokens)[:, None]
            self._positions = None if self._positions is None else self._positions + 1
            self.leave(ended)

    def leave(self, rows: Sequence[Row]) -> None:
        """Takes these rows out, and the padding that only they needed."""
        import torch

        gone = set(map(id, rows))
        kept = [place for place, row in enumerate(self.rows) if id(row) not in gone]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in kept]
        if not kept:
            self._cache = self._mask = self._positions = self._tokens = None
            return
        places = torch.tensor(kept, device=self._tokens.device)
        self._mask = self._mask[places]
        unused = int(self._mask.any(dim=0).int().argmax())
        self._mask = self._mask[:, unused:]
        self._tokens = self._tokens[places]
        self._positions = None if self._positions is None else self._positions[..., places, :]
        for layer in self._cache.layers:
            layer.keys = layer.keys[places, :, unused:]
            layer.values = layer.values[places, :, unused:]

    def _read(self, prompt: Sequence[int]) -> tuple[torch.Tensor, dict[str, Any]]:
        """Logits [V] behind the prompt, and what the model hands on; prepared as every other answer is."""
        import torch
        from transformers import DynamicCache, GenerationConfig

        found: dict[str, Any] = {}

        def read_only(inner: Any, input_ids: torch.Tensor, generation_config: Any, **state: Any) -> torch.Tensor:
            for unused in ("logits_processor", "stopping_criteria"):
                del state[unused]
            output = inner._prefill(input_ids, generation_config, state)
            found.update(inner._update_model_kwargs_for_generation(output, state))
            self._inner, found["logits"] = inner, output.logits[0, -1]
            return input_ids

        ids = torch.tensor([list(prompt)], device=self._model.device)
        shown = shown_inputs([prompt], ids, torch.ones_like(ids))
        settings = GenerationConfig(max_new_tokens=1, do_sample=False, pad_token_id=0, eos_token_id=0)
        with without_upstream_warnings():
            self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **{name: value.to(self._model.device) for name, value in shown.items()},
                generation_config=settings,
                custom_generate=read_only,
                past_key_values=DynamicCache(),  # whole rows, where the model would keep a window of each
            )
        return found.pop("logits"), found

    def _take_in(self, state: dict[str, Any], tokens: list[int]) -> None:
        """Puts the state of one row beside those that are there, once for each token that follows it."""
        import torch
        from torch.nn.functional import pad

        count, cache = len(tokens), state["past_key_values"]
        cache.batch_repeat_interleave(count)
        positions = state.get("position_ids")
        positions = None if positions is None else positions[..., -1:].repeat_interleave(count, dim=-2)
        new = torch.tensor(tokens, device=self._model.device)[:, None]
        mask = torch.ones_like(new).repeat(1, cache.get_seq_length())
        if not self.rows:
            self._cache, self._mask, self._positions, self._tokens = cache, mask, positions, new
            return
        width = max(self._mask.shape[1], mask.shape[1])
        for layer, other in zip(self._cache.layers, cache.layers, strict=True):
            for name in ("keys", "values"):
                both = [getattr(one, name) for one in (layer, other)]
                setattr(layer, name, torch.cat([pad(one, (0, 0, width - one.shape[-2], 0)) for one in both]))
        self._mask = torch.cat([pad(one, (width - one.shape[1], 0)) for one in (self._mask, mask)])
        self._tokens = torch.cat([self._tokens, new])
        self._positions = None if positions is None else torch.cat([self._positions, positions], dim=-2)


def why_alone(model: Any) -> str | None:
    """Why answers of this model have to be written one at a time; None where they can be written together.

    What its kind rules out is said by name. Beyond that the model itself is asked: three rows that join and leave are
    compared with each of them read at once. Costs three forwards of a few tokens and a dozen of one.
    """
    if model.config.is_encoder_decoder:
        return "it reads by an encoder"
    if prompt_length(model):
        return "its adapter has learned a prompt"
    rehearsal = _Rehearsal(model)
    try:
        if kinds := _unknown_layers(model.config.get_text_config(decoder=True)):
            return f"its layers keep {kinds}, and not the keys and values of every token"
        rehearsal.run()
    except _Unfollowed as reason:
        return str(reason)
    except Exception as error:  # code of its own raises what it pleases
        return f"beside others it fails with {type(error).__name__}"
    return None if rehearsal.agrees else "its answers change beside others that are longer"


def _unknown_layers(config: Any) -> str:
    """What layers keep that no padding can bring to another length."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    kinds = {type(layer).__name__ for layer in DynamicCache(config=config).layers}
    kinds -= {DynamicLayer.__name__, DynamicSlidingWindowLayer.__name__}
    chunked = {"chunks of attention"} if "chunked_attention" in (getattr(config, "layer_types", None) or ()) else set()
    return ", ".join(sorted(kinds | chunked))


class _Unfollowed(Exception):
    """The model hands on what is not known here."""


class _Given:
    """A row whose tokens are given; remembers the logits before each."""

    def __init__(self, prompt: list[int], tokens: list[int]):
        self.prompt, self.tokens = prompt, tokens
        self.seen: list[Any] = []

    def choose(self, logits: torch.Tensor) -> int:
        self.seen.append(logits.float())
        return self.tokens[len(self.seen) - 1]

    def add(self, token: int) -> bool:
        return len(self.seen) == len(self.tokens)


class _Rehearsal:
    """A row, a longer one that joins it, and a shorter one that joins when the first has left."""

    def __init__(self, model: Any):
        self._model = model
        self._rows = [_Given(ROW, [1, 2, 0, 1]), _Given([2, *ROW], [0, 1, 1, 2, 0, 2, 1]), _Given(ROW[:5], [2, 2, 1])]

    def run(self) -> None:
        batch = _Followed(self._model)
        first, longer, shorter = self._rows
        for joins, steps in ((first, 2), (longer, 1), (shorter, 9)):
            batch.join(joins.prompt, [joins])
            for _ in range(steps):
                batch.step()

    @property
    def agrees(self) -> bool:
        import torch

        share = APART["float32" if self._model.dtype == torch.float32 else "half"]
        return all(self._agrees(row, share) for row in self._rows)

    def _agrees(self, row: _Given, share: float) -> bool:
        import torch

        whole = torch.tensor([row.prompt + row.tokens[:-1]], device=self._model.device)
        with torch.no_grad():
            alone = self._model(input_ids=whole, use_cache=False).logits[0, len(row.prompt) - 1 :].float()
        return bool((alone - torch.stack(row.seen)).abs().max() <= share * alone.std())  # NaN is not


class _Followed(RunningBatch):
    """A batch that looks at what the model hands on."""

    def _read(self, prompt: Sequence[int]) -> tuple[torch.Tensor, dict[str, Any]]:
        import torch
        from transformers import DynamicCache

        logits, state = super()._read(prompt)
        tensors = {name for name, value in state.items() if isinstance(value, torch.Tensor)}
        cache = state.get("past_key_values")
        layers: list[Any] = cache.layers if type(cache) is DynamicCache else []
        if {layer.get_seq_length() for layer in layers} != {len(prompt)}:
            raise _Unfollowed("it does not keep the keys and values of its tokens")
        if unknown := tensors - {*FOLLOWED}:
            raise _Unfollowed(f"it hands on {', '.join(sorted(unknown))} from token to token")
        return logits, state
