"""`model`: which base, in which precision, where."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ghosttune.config.setting import ATTENTION, DEVICE, TEMPLATE, Section, Text, setting

MARKS = ("{{", "{%")
"""What makes a text a Jinja template: a file's name has none of them."""


class ModelSettings(Section):
    name: Text = setting(
        "builtin:tiny",
        critical=True,
        why="decides everything else: tokenizer, template, module names",
        benefit="what the base can do already need not be learned from your rows",
        cost="memory and time of every step grow with its parameters",
    )
    """Hub id, local folder, or `builtin:tiny` (ships with the package)."""
    init: Literal["pretrained", "random"] = setting(
        "pretrained",
        why="tuning builds on what pretraining left in the weights",
        benefit="`random` measures what pretraining contributed",
        cost="random weights know no language: expect to train far longer, with `full`",
    )
    """`pretrained` loads the weights; `random` takes only the shape and draws weights from `train.seed`."""
    revision: Text | None = setting(
        None,
        why="the same name can hold other weights tomorrow",
        benefit="a run can be repeated with the very weights it had",
        cost="later corrections of the repository do not reach you",
    )
    """Branch, tag or commit of a hub id; the resolved commit is recorded."""
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32",
        critical=True,
        why="what the base computes in; float32 rounds least and runs everywhere",
        benefit="bfloat16 halves the weights' memory; adapters stay float32",
        cost="bfloat16 keeps 8 significant bits, and a CPU may compute it slower",
    )
    """Precision of the base weights."""
    quantization: Literal["none", "int8", "nf4"] = setting(
        "none",
        why="the frozen base only has to be read, not trained",
        benefit="a larger base in the same memory: int8 a quarter, nf4 an eighth of float32",
        cost="the base's numbers are rounded, and each step is slower",
    )
    """Bits the base's linear layers are kept in (`pip install 'ghosttune[quant]'`); adapters stay float32."""
    device: Annotated[str, Field(pattern=DEVICE)] = setting(
        "auto",
        critical=True,
        why="`auto` is resolved once, printed and recorded; the others are never changed silently",
        benefit="a run moves between machines without an edit, and still says where it ran",
        cost="the CPU is slow, and gives the same bytes each time; kernels of a GPU need not",
    )
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    attention: Annotated[str, Field(pattern=ATTENTION)] | None = setting(
        None,
        why="how tokens look at each other decides the time and memory of long rows, and nothing else",
        benefit="FlashAttention and sdpa keep no weight for each pair of tokens; FlashAttention skips what is masked",
        cost="all but eager and sdpa need a GPU; sums are made in another order, so that last bits differ",
    )
    """What computes attention, by Transformers' names (`attn_implementation`): `eager`, `sdpa`, `flex_attention`,
    `flash_attention_2`, or a kernel of the hub; null for what Transformers takes for the model."""
    chat_template: Annotated[str, Field(pattern=TEMPLATE)] | None = setting(
        None,
        why="a base model has no chat template, and a model's own may write no tools or not say what it trains",
        benefit="training, preview, chat, serve and what is merged from the run write conversations as you say",
        cost="an instruction-tuned model has learned its own marks, and has to learn others anew",
    )
    """File of the Jinja template that writes conversations, in place of the model's own; the run keeps its text. Or the
    text itself; null for the model's own. It is rendered within bounds and reaches nothing of this machine."""
    trust_remote_code: bool = setting(
        False,
        why="runs Python code that comes with the model; off unless you read it",
        benefit="models that Transformers does not know can be loaded",
        cost="that code can do whatever you can do on this machine",
    )
    """Whether code shipped inside a model repository may run."""
