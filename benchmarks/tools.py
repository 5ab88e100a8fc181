"""Does a tuned model call its tool rightly, as a program sees it: through `ghosttune serve`, with OpenAI's client?

    python benchmarks/tools.py [--rows 3000] [--steps 400] [--held-out 100] [--seed 0] [--out runs/tools]

Planted orders for `builtin:tiny`, whose tokenizer is given a chat template with tools; calls look as Qwen 2.5's do.
"Order three red lamps for Anna." is to become order(item="lamps", colour="red", count=3, customer="Anna"); a tenth of
the messages is no order. Nothing that is asked in the end occurs in training. Each message is asked whole and streamed;
the calls are answered, and what the model then says is read too.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from quick import SMALL, launch

import ghosttune
from ghosttune.config.loading import load_config
from ghosttune.models.builtin import builtin_model_folder

TEMPLATE = """{{- bos_token }}
{%- if tools %}
    {{- '<|system|>' }}
    {%- for tool in tools %}
        {{- tool.function.name + '(' + tool.function.parameters.properties | join(', ') + ')\\n' }}
    {%- endfor %}
    {{- eos_token }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|user|><tool_response>\\n' + message.content + '\\n</tool_response>' + eos_token }}
    {%- else %}
        {{- '<|' + message.role + '|>' + message.content }}
        {%- for call in message.tool_calls %}
            {{- '' if loop.first and not message.content else '\\n' }}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"""

NAMES = (
    "Ada",
    "Anna",
    "Ben",
    "Carla",
    "Clara",
    "Emil",
    "Finn",
    "Grace",
    "Hugo",
    "Iris",
    "Jonas",
    "Kate",
    "Leo",
    "Lily",
)
NAMES += ("Luke", "Maya", "Mia", "Nora", "Olga", "Oscar", "Paul", "Rosa", "Ruth", "Sam", "Theo", "Tom", "Vera", "Zoe")
ITEMS = ("clocks", "cups", "hats", "jars", "keys", "lamps", "maps", "pens", "shoes", "stamps", "tables", "umbrellas")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "grey", "pink", "purple", "golden", "silver")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

ASKED = (
    "Order {n} {colour} {item} for {customer}.",
    "{customer} needs {n} {colour} {item}. Please order them.",
    "Please order {item} for {customer}: {n} of them, all {colour}.",
    "For {customer}: {count} {item}, {colour}.",
    "I am {customer}. I would like {n} {colour} {item}.",
    "Could you order {n} {item} in {colour}? They are for {customer}.",
)
NOTHING = (
    ("{customer} has {n} {colour} {item} already.", "Good for {customer}."),
    ("Are the {n} {colour} {item} of {customer} there?", "I will ask {customer}."),
    ("Thank you for the {count} {colour} {item}, says {customer}.", "You are welcome, {customer}."),
)
"""What is no order, and what is said to it."""

PROPERTIES = {"item": "string", "colour": "string", "count": "integer", "customer": "string"}
TOOL = {
    "type": "function",
    "function": {
        "name": "order",
        "description": "Order things.",
        "parameters": {
            "type": "object",
            "properties": {name: {"type": kind} for name, kind in PROPERTIES.items()},
            "required": list(PROPERTIES),
        },
    },
}

Order = tuple[str, str, int, str]


class Drawn:
    """Orders, none of them twice."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)
        self._seen: set[Order] = set()

    def order(self) -> dict[str, Any]:
        while True:
            draw = lambda values: str(self.random.choice(values))  # noqa: E731
            found = (draw(ITEMS), draw(COLOURS), int(self.random.integers(len(NUMBERS))) + 2, draw(NAMES))
            if found not in self._seen:
                self._seen.add(found)
                return dict(zip(PROPERTIES, found, strict=True))

    def row(self) -> tuple[str, list[dict[str, Any]], str]:
        """(what is asked, the orders in it, what is said in the end)."""
        order = self.order()
        if self.random.random() < 0.1:
            asked, said = NOTHING[self.random.integers(len(NOTHING))]
            return told(asked, order), [], told(said, order)
        asked = ASKED[self.random.integers(len(ASKED))]
        return told(asked, order), [order], told("Done, {customer}.", order)


def told(wording: str, order: dict[str, Any]) -> str:
    return wording.format(n=NUMBERS[order["count"] - 2], **order)


def message(orders: list[dict[str, Any]]) -> dict[str, Any]:
    calls = [
        {"id": f"c{number}", "type": "function", "function": {"name": "order", "arguments": json.dumps(order)}}
        for number, order in enumerate(orders)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def conversation(asked: str, orders: list[dict[str, Any]], said: str) -> dict[str, Any]:
    """A row that trains the calls and what is said when they are answered."""
    answers = [{"role": "tool", "tool_call_id": f"c{number}", "content": "ok"} for number in range(len(orders))]
    called = [message(orders), *answers] if orders else []
    messages = [{"role": "user", "content": asked}, *called, {"role": "assistant", "content": said}]
    return {"messages": messages, "tools": [TOOL]}


def trained(out: Path, rows: list[dict[str, Any]], steps: int, seed: int) -> Path:
    """A run on these rows, of the built-in model with the chat template."""
    from transformers import AutoTokenizer

    shutil.copytree(builtin_model_folder("builtin:tiny"), out / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(str(out / "model"))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(out / "model")
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "model.name": str(out / "model"),
        "model.device": "cpu",
        "method.type": "full",
        "data.train.path": str(out / "rows.jsonl"),
        "train.seed": seed,
        "train.max_steps": steps,
        "train.per_device_train_batch_size": 16,
        "train.learning_rate": 1e-3,
        "train.warmup_steps": 10,
        "train.eval_steps": steps,
        "measure.norms": None,
        "measure.ledger": None,
        "evaluate.limit": 0,
        "evaluate.max_new_tokens": 200,
        **SMALL,
    }
    ghosttune.train(
        load_config(overrides=[f"{name}={json.dumps(value)}" for name, value in settings.items()]), out / "run"
    )
    return out / "run"


@contextmanager
def served(run: Path) -> Iterator[str]:
    """Where `ghosttune serve` answers."""
    command = [sys.executable, "-m", "ghosttune", "serve", str(run), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            said = process.stdout.readline()
            address = re.search(r"http://\S+/v1", said)
            if address is None:
                raise SystemExit(f"the server did not start: {said}")
            yield address[0]
        finally:
            process.terminate()


def asked_of(client: Any, asked: str, orders: list[dict[str, Any]], said: str) -> dict[str, bool]:
    """What was right in the answers to one message."""
    given: dict[str, Any] = {"model": "run", "tools": [TOOL], "messages": [{"role": "user", "content": asked}]}
    choice = client.chat.completions.create(**given).choices[0]
    with client.chat.completions.stream(**given) as stream:
        stream.until_done()
        streamed = stream.get_final_completion().choices[0]
    right = {
        "exact": answered(choice) == (orders or said, "tool_calls" if orders else "stop"),
        "streamed the same": answered(streamed) == answered(choice),
    }
    calls = choice.message.tool_calls
    if calls:
        results = [{"role": "tool", "tool_call_id": call.id, "content": "ok"} for call in calls]
        then = client.chat.completions.create(**{**given, "messages": [*given["messages"], choice.message, *results]})
        right["said in the end"] = answered(then.choices[0]) == (said, "stop")
    return right


def answered(choice: Any) -> tuple[Any, str]:
    """The orders, or the words where there are none, and why the answer ended."""
    calls = choice.message.tool_calls or ()
    orders = [json.loads(call.function.arguments) for call in calls if call.function.name == "order"]
    return orders or choice.message.content, choice.finish_reason


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/tools"))
    chosen = parser.parse_args(argv)
    try:
        import openai
    except ModuleNotFoundError:
        raise SystemExit("skipped: needs the package openai") from None

    drawn = Drawn(chosen.seed)
    rows = [{**conversation(*drawn.row()), "split": "train"} for _ in range(chosen.rows)]
    rows += [{**conversation(*drawn.row()), "split": "dev"} for _ in range(20)]
    held_out = [drawn.row() for _ in range(chosen.held_out)]
    run = chosen.out / "run"
    if not run.exists():
        chosen.out.mkdir(parents=True, exist_ok=True)
        trained(chosen.out, rows, chosen.steps, chosen.seed)
    right, asked = Counter[str](), Counter[str]()
    with served(run) as address, openai.OpenAI(base_url=address, api_key="none", timeout=600, max_retries=0) as client:
        for question, orders, said in held_out:
            found = asked_of(client, question, orders, said)
            if not all(found.values()):
                print(
                    f"  wrong: {question} ({', '.join(what for what, fine in found.items() if not fine)})", flush=True
                )
            for what, fine in found.items():
                for name in (what, f"{what}, {len(orders)} orders") if what == "exact" else (what,):
                    right[name] += fine
                    asked[name] += 1
    for name in sorted(asked):
        print(f"{name:<20} {right[name]:>4} of {asked[name]:>4} ({right[name] / asked[name]:.1%})")


if __name__ == "__main__":
    launch(main, "--rows 24 --steps 2 --held-out 2 --out tools")
