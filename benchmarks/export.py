"""Do other programs answer as `ghosttune chat` does, from the files that `ghosttune export` writes?

    python benchmarks/export.py answers RUN [--prompts 50] [--kinds f16,q8_0] [--tokens 24]
    python benchmarks/export.py templates [--prompts-binary FILE]

`answers` needs llama-cpp-python (built from its sources: pip install llama-cpp-python). For each kind of GGUF, and for
the adapter's file on the base's:

    prompts    how many prompts the file's own chat template writes to the letter as the run does
    ids        how many llama.cpp cuts into the run's tokens
    tokens     the share of greedy tokens that are the run's, place by place until either answer ends

`templates` renders the Modelfile's template of every chat template at hand: by Go's own text/template, with
`go build -o FILE` in benchmarks/ollama_prompts, against the prompts of the run. It says what it did not render.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quick import launch

from ghosttune.data.templates import Template
from ghosttune.data.turns import Turn
from ghosttune.errors import ModelError
from ghosttune.exporting import asking
from ghosttune.inference.pipeline import Pipeline
from ghosttune.proving.tokenizers import MADE, SMALL, byte_level
from ghosttune.workflows.export import export

ODD = (
    "What is the capital of France?",
    "名前は？ Zoë — naïve café 😀",
    "He said: \"we'll, they're\"  12345 times\n\n  ok",
    "1",
    "x = [1, 2]; y += 3  # {{ a }} <b>",
)

LLAMA_3 = (
    "{% for m in messages %}{{ (bos_token if loop.first else '') + '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PHI_3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN_2_5 = (
    "{% if messages[0]['role'] == 'system' %}{{ '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}"  # noqa: E501
    "{% endif %}{% for m in messages %}{% if m.role != 'system' or not loop.first %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'User: ' + m.content + '\n\n' }}"
    "{% elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content + eos_token }}"
    "{% else %}{{ m.content + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
ALPACA = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\n\n' }}{% elif m.role == 'user' %}"
    "{{ '### Instruction:\n' + m.content + '\n\n' }}{% else %}{{ '### Response:\n' + m.content + eos_token + '\n\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
COMMAND_R = (
    "{{ bos_token }}{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|><|' + ('CHATBOT' if m.role == 'assistant' else "
    "m.role | upper) + '_TOKEN|>' + m.content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
GRANITE = (
    "{% for m in messages %}{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
FAMILIES = {
    "llama-3": (LLAMA_3, ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]),
    "phi-3": (PHI_3, ["<|end|>"]),
    "qwen-2.5": (QWEN_2_5, []),
    "mistral": (MISTRAL, []),
    "deepseek": (DEEPSEEK, []),
    "alpaca": (ALPACA, []),
    "command-r": (COMMAND_R, ["<|END_OF_TURN_TOKEN|>"]),
    "granite": (GRANITE, ["<|end_of_text|>"]),
}
"""Chat templates as these families write plain conversations, and special tokens that they need."""


def answers(run: Path, prompts: int, kinds: Sequence[str], tokens: int) -> None:
    """Prints a line of figures for each file."""
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        print("skipped: answers of llama.cpp, for llama-cpp-python is not installed (pip install llama-cpp-python)")
        return
    own = Pipeline.from_run(run, device="cpu")
    asked = _prompts(run, prompts)
    expected = own.generate(asked, max_new_tokens=tokens)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files: list[tuple[str, Path, dict[str, str]]] = []
        for kind in kinds:
            export(run, "gguf", place / kind, kind=kind)
            files.append((f"merged {kind}", place / kind / "model.gguf", {}))
        try:
            export(run, "ollama", place / "apart", adapter=True)
            lora = {"lora_path": str(place / "apart/adapter.gguf")}
            files.append(("base f16 + adapter", place / "apart/model.gguf", lora))
        except ModelError as error:
            print(f"skipped: the adapter's file: {error}")
        print(f"{run}: {len(asked)} prompts, {sum(a.tokens for a in expected)} tokens\n")
        print("| file | prompts | ids | tokens |\n| --- | --- | --- | --- |")
        for name, path, options in files:
            print(f"| {name} | {_compared(path, options, own, asked, expected, tokens)} |", flush=True)


def _prompts(run: Path, count: int) -> list[str]:
    """Those of the run's dev rows, as they were answered, and odd ones."""
    rows = sorted((run / "predictions").glob("*.jsonl"))
    said = [json.loads(line)["prompt"] for path in rows for line in path.read_text(encoding="utf-8").splitlines()]
    many = [*dict.fromkeys([*ODD, *said])]
    plain = [f"Say {word} number {n}" for n in range(count) for word in ("red", "green")]
    return [*many, *plain][:count]


def _compared(path: Path, options: Any, own: Pipeline, asked: Sequence[str], expected: Any, tokens: int) -> str:
    import llama_cpp
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    engine = llama_cpp.Llama(str(path), n_ctx=512, n_threads=1, verbose=False, **options)
    special = {f"{name}_token": _text(engine, getattr(engine, f"token_{name}")()) for name in ("bos", "eos")}
    write = Jinja2ChatFormatter(template=engine.metadata["tokenizer.chat_template"], **special)
    template = own.encoder.template
    same = {"prompts": 0, "ids": 0, "tokens": 0, "of": 0}
    for prompt, answer in zip(asked, expected, strict=True):
        text = write(messages=[{"role": "user", "content": prompt}]).prompt
        ids = own.prompt_ids(prompt)
        same["prompts"] += text == asking.prompt_text(template, (Turn("user", prompt),))
        begins = engine.metadata["tokenizer.ggml.add_bos_token"] == "true"
        body = text.removeprefix(special["bos_token"]) if begins else text
        same["ids"] += engine.tokenize(body.encode(), add_bos=begins, special=True) == ids
        found = _greedy(engine, ids, template.stop_token_ids, tokens)
        wanted = template.tokenizer(answer.text, add_special_tokens=False).input_ids
        other = template.tokenizer(template.tokenizer.decode(found), add_special_tokens=False).input_ids
        same["tokens"] += sum(a == b for a, b in zip(other, wanted, strict=False))
        same["of"] += max(len(other), len(wanted))
    share = same["tokens"] / max(1, same["of"])
    return f"{same['prompts']} of {len(asked)} | {same['ids']} of {len(asked)} | {share:.2%} of {same['of']}"


def _greedy(engine: Any, ids: list[int], stops: list[int], tokens: int) -> list[int]:
    found: list[int] = []
    for token in engine.generate(ids, temp=0.0, top_k=1):
        if token in stops or len(found) == tokens:
            break
        found.append(token)
    return found


def _text(engine: Any, token: int) -> str:
    return engine._model.token_get_text(token) if token >= 0 else ""


def templates(binary: Path | None) -> None:
    """Prints how many prompts each template's Go form writes to the letter."""
    cases = {name: Template("chat", make()) for name, make in MADE.items() if make().chat_template}
    for name, (source, special) in FAMILIES.items():
        cases[name] = Template("chat", byte_level([*SMALL, *special], source))
    cases |= {kind: Template(kind, MADE["builtin"]()) for kind in ("turns", "plain")}
    asked, given = [], {}
    for name, template in cases.items():
        try:
            joints = asking.joints_of(template)
        except ModelError as error:
            print(f"{name}: refused: {error}")
            continue
        bos = template.tokenizer.bos_token if asking.begins_with_bos(template) else ""
        given[name] = (bos, template, asking.conversations(("system", "user") in joints.between))
        told = [[{"role": turn.role, "content": turn.content} for turn in turns] for turns in given[name][2]]
        asked.append({"template": asking.go_template(joints, bos), "conversations": told})
    if binary is None:
        print(f"skipped: rendering {len(asked)} templates of Go, for there is no --prompts-binary")
        return
    done = subprocess.run([binary], input=json.dumps(asked), capture_output=True, text=True, check=True)
    for (name, (bos, template, turns)), found in zip(given.items(), json.loads(done.stdout), strict=True):
        same = sum(bos + text == asking.prompt_text(template, one) for text, one in zip(found, turns, strict=True))
        print(f"| {name} | {same} of {len(turns)} |")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("answers")
    part.add_argument("run", type=Path)
    part.add_argument("--prompts", type=int, default=50)
    part.add_argument("--kinds", default="f16,q8_0")
    part.add_argument("--tokens", type=int, default=24)
    part = parts.add_parser("templates")
    part.add_argument("--prompts-binary", type=Path)
    given = parser.parse_args(arguments)
    if given.part == "answers":
        answers(given.run, given.prompts, given.kinds.split(","), given.tokens)
    else:
        templates(given.prompts_binary)


if __name__ == "__main__":
    launch(main, "answers {run} --prompts 4 --kinds f16 --tokens 4", "templates")
