"""Seconds for greedy answers to E2E's dev set: ghosttune, a plain `generate` loop, and transformers' pipeline.

The same tuned model in all three (merged, so that nobody pays for an adapter), the same prompts, the same stop tokens,
float32, one thread, CPU time; the three take turns. Both others get the batch size that is fastest for them. The plain
loop pads on the left and takes prompts as they stand in the file; the pipeline is told how to do the same.

    ghosttune train benchmarks/e2e.yaml --set data.train.path=FOLDER --out RUN
    python benchmarks/generation.py RUN --e2e FOLDER

Printed are medians, the ratio of each turn, and how many answers are the same to the letter.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from quick import launch

from ghosttune.config.sections.data import SourceSettings
from ghosttune.data.sources import open_source
from ghosttune.inference.pipeline import Pipeline
from ghosttune.models.merging import merged

MAX_NEW_TOKENS = 128

Answers = Callable[[], list[str]]


def prompts_of(pipeline: Pipeline, folder: str, count: int, distinct: bool) -> list[list[int]]:
    """Token ids of the first dev prompts, in the order of the file; `distinct` keeps one per meaning representation."""
    records = [row for row in open_source(SourceSettings(name="e2e_nlg", path=folder)).records if row.split == "dev"]
    kept = list({row.group: row for row in records}.values()) if distinct else records
    return [pipeline.encoder.prompt_ids(record) for record in kept[:count]]


def plain_loop(model: Any, tokenizer: Any, prompts: list[list[int]], stops: list[int], batch: int) -> list[str]:
    """`generate` over the prompts as they come, batch by batch."""
    texts = []
    for start in range(0, len(prompts), batch):
        rows = prompts[start : start + batch]
        width = max(map(len, rows))
        ids = torch.tensor([[stops[0]] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        settings = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "pad_token_id": stops[0]}
        with torch.no_grad():
            output = model.generate(input_ids=ids, attention_mask=mask, eos_token_id=stops, **settings)
        for row in output[:, width:].tolist():
            end = next((place for place, token in enumerate(row) if token in stops), None)
            texts.append(tokenizer.decode(row[:end], skip_special_tokens=True).strip())
    return texts


def their_pipeline(model: Any, tokenizer: Any, prompts: list[list[int]], stops: list[int], batch: int) -> list[str]:
    """transformers' text-generation pipeline, which tokenises for itself."""
    from transformers import pipeline

    tokenizer.padding_side = "left"
    made: Any = pipeline("text-generation", model=model, tokenizer=tokenizer, batch_size=batch)
    texts = [tokenizer.decode(row) for row in prompts]
    settings = {
        "max_new_tokens": MAX_NEW_TOKENS,
        "do_sample": False,
        "eos_token_id": stops,
        "add_special_tokens": False,
    }
    output = made(texts, return_full_text=False, **settings)
    return [row[0]["generated_text"].strip() for row in output]


def seconds(answers: Answers) -> tuple[float, list[str]]:
    begun = time.process_time()
    texts = answers()
    return time.process_time() - begun, texts


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run tuned on E2E")
    parser.add_argument("--e2e", required=True, help="folder with E2E's devset.csv (or .gz)")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="of the two others")
    parser.add_argument("--repeated", action="store_true", help="the rows as they are, several per prompt")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    pipeline = Pipeline.open(options.run, "cpu")
    pipeline.model = merged(pipeline.model)
    template = pipeline.encoder.template
    prompts = prompts_of(pipeline, options.e2e, options.prompts, not options.repeated)
    asked = (pipeline.model, template.tokenizer, prompts, template.stop_token_ids, options.batch)
    ways: dict[str, Answers] = {
        "ghosttune": lambda: [answer.text for answer in pipeline.generate(prompts, max_new_tokens=MAX_NEW_TOKENS)],
        "plain loop": lambda: plain_loop(*asked),
        "transformers pipeline": lambda: their_pipeline(*asked),
    }
    turns = [{name: seconds(way) for name, way in ways.items()} for _ in range(options.rounds)]
    print(f"{len(prompts)} prompts, {len(set(map(tuple, prompts)))} different")
    for name in ways:
        times = [turn[name][0] for turn in turns]
        ratios = [turn[name][0] / turn["ghosttune"][0] for turn in turns]
        same = sum(one == other for one, other in zip(turns[0][name][1], turns[0]["ghosttune"][1], strict=True))
        print(
            f"{name:<22} {statistics.median(times):6.2f} s, {statistics.median(ratios):5.2f} times ghosttune's "
            f"({min(ratios):.2f} to {max(ratios):.2f}), {same} answers the same"
        )


if __name__ == "__main__":
    launch(main, "{run} --e2e {e2e} --prompts 4 --rounds 1 --batch 2")
