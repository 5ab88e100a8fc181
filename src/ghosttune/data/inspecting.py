"""What can be wrong with rows that training would accept: looked for in the very features it gets."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ghosttune.config.findings import Checks, Found
from ghosttune.data.contamination import contamination
from ghosttune.data.encoding import IGNORED, Features
from ghosttune.data.images import begins_as_image
from ghosttune.data.records import Record, Records
from ghosttune.data.splitting import shared_groups
from ghosttune.data.stored import key_of
from ghosttune.data.templates import Template
from ghosttune.data.turns import IMAGE_MARK, images_of
from ghosttune.errors import listed

ROWS = Checks()
"""The checks of rows, each made of an `Inspected`."""

SHOWN = 5
"""Ids in a message; the finding holds them all."""

FAMILY_MARKS = {
    "ChatML (Qwen)": ("<|im_start|>", "<|im_end|>"),
    "Llama 3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "Llama 2 and Mistral": ("[INST]", "[/INST]", "<<SYS>>"),
    "Gemma": ("<start_of_turn>", "<end_of_turn>"),
    "Phi and Zephyr": ("<|system|>", "<|user|>", "<|assistant|>"),
    "GPT-2": ("<|endoftext|>",),
}
"""Family of models -> marks of its chat template, by which rows that were rendered already are known."""

SINGLE_TOKENS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>")
"""Marks that are one token each in the family they belong to."""


@dataclass(frozen=True)
class Inspected:
    """The rows of a run as its training, evaluation and collator see them."""

    train: Records
    dev: Sequence[Record]
    test: Records
    features: Sequence[Any]
    """Of the training rows."""
    collate: Callable[[Sequence[Any]], dict[str, Any]]
    tokenizer: Any
    template: Template | None
    """None where the task renders no prompts."""
    max_new_tokens: int | None
    """Longest answer of an evaluation; None where none is generated."""
    published: bool
    """Whether the rows are those of a known dataset, whose repetitions are not the user's."""

    @property
    def rows(self) -> Iterator[Features]:
        """The features with trained tokens marked, but not the blocks of a corpus, which begin and end anywhere."""
        is_corpus = len(self.train) > 0 and self.train[0].tokens is not None
        return (row for row in self.features if isinstance(row, Features) and not is_corpus)


@ROWS.add("A run ends at the first batch that shows one of them")
def images_that_cannot_be_opened(case: Inspected) -> Found:
    """Files that do not begin as an image does; a file cut short is found when it is shown."""
    rows: dict[str, list[str]] = defaultdict(list)
    for record in (*case.train, *case.dev):
        for image in dict.fromkeys(images_of(record.turns)):
            rows[image].append(record.example_id)
    broken = [image for image in rows if not begins_as_image(image)]
    if broken:
        concerned = [example_id for image in broken for example_id in rows[image]]
        yield (
            f"{len(broken)} of {len(rows)} images cannot be opened, which {len(concerned)} rows show: "
            f"{listed(broken, SHOWN)}",
            "Get these files anew, or take out the rows",
            concerned,
        )


@ROWS.add("A row that trains nothing only lengthens its batch", spoils="has no trained token")
def no_supervised_labels(case: Inspected) -> Found:
    """Rows none of whose tokens is trained."""
    empty = [row.example_id for row in case.features if row.targets == 0]
    if empty:
        share = len(empty) / len(case.features)
        yield (
            f"{len(empty)} of {len(case.features)} rows ({share:.1%}) have no trained token: {listed(empty, SHOWN)}",
            "Look at them with `ghosttune preview`, and give them a completion",
            empty,
        )


@ROWS.add("An answer that never ends in training never ends in use either", spoils="does not train its stop token")
def stop_token_not_trained(case: Inspected) -> Found:
    """Answers whose last trained token is not a stop token."""
    if case.template is None:
        return
    stops = set(case.template.stop_token_ids)
    endless = [row.example_id for row in case.rows if row.targets and int(row.input_ids[row.trained][-1]) not in stops]
    if endless:
        yield (
            f"{len(endless)} of {len(case.features)} rows do not train {case.template.stop_token} at their end: "
            f"{listed(endless, SHOWN)}",
            "Raise data.max_length, or choose a data.template that ends answers with a stop token",
            endless,
        )


@ROWS.add("Labels that a batch loses are not learned: with pad = eos masked by token, answers never learn to stop")
def labels_lost_in_the_batch(case: Inspected) -> Found:
    """Trained tokens, the stop token above all, that the collator masks or changes."""
    batch: list[Features] = []
    for row in case.rows:  # the shortest and the longest, so that there is padding
        batch = sorted([*batch, row], key=len)
        del batch[1:-1]
    labels = case.collate(batch)["labels"] if batch else []
    for row, found in zip(batch, labels, strict=True):
        expected = row.input_ids[row.trained].tolist()
        kept = found[found != IGNORED].tolist()
        if kept != expected:
            lost = [token for token in dict.fromkeys(expected) if expected.count(token) > kept.count(token)]
            names = listed(case.tokenizer.convert_ids_to_tokens(lost), SHOWN) or "none"
            yield (
                f"of the {len(expected)} trained tokens of row {row.example_id} the batch labels {len(kept)}; "
                f"masked: {names}",
                "Recognise padding by position, not by token, or give the tokenizer a pad token of its own",
                [row.example_id],
            )


@ROWS.add("The model was pretrained with one at most, and reads another as a new document")
def double_bos(case: Inspected) -> Found:
    """Rows that begin with the beginning-of-text token twice."""
    bos = getattr(case.tokenizer, "bos_token_id", None)
    if bos is None:
        return
    twice = [row.example_id for row in case.rows if len(row) > 1 and row.input_ids[0] == row.input_ids[1] == bos]
    if twice:
        yield (
            f"{len(twice)} of {len(case.features)} rows begin with {case.tokenizer.bos_token} twice: "
            f"{listed(twice, SHOWN)}",
            "Take it out of the rows, or out of the chat template: one of the two writes it already",
            twice,
        )


@ROWS.add("Marks that the tokenizer does not know are read letter by letter, and say nothing to the model")
def template_of_another_family(case: Inspected) -> Found:
    """A chat template whose marks are not tokens of this tokenizer."""
    if case.template is None or case.template.kind != "chat" or not case.train:
        return
    text = "".join(part.text for part in case.template.render(case.train[0].turns))
    unknown = [mark for mark in SINGLE_TOKENS if mark in text and len(_ids(case.tokenizer, mark)) > 1]
    if unknown:
        yield (
            f"the chat template writes {listed(unknown)}, which are no tokens of this tokenizer "
            f"({unknown[0]} becomes {len(_ids(case.tokenizer, unknown[0]))} of them)",
            "Use the model's own tokenizer with its own template, or data.template: turns",
            [],
        )


@ROWS.add("They are rendered once more around them, and the model learns markup inside markup")
def rows_rendered_already(case: Inspected) -> Found:
    """Rows whose own text holds the marks of a chat template, or the tokenizer's special tokens."""
    marks = {mark: family for family, marks in FAMILY_MARKS.items() for mark in marks}
    marks |= {token: "this tokenizer" for token in case.tokenizer.all_special_tokens if len(token) > 2}
    pattern = re.compile("|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)))
    found: dict[str, list[str]] = defaultdict(list)
    for record in case.train:
        words = (turn.words.replace(IMAGE_MARK if turn.images else "", "") for turn in record.turns)
        mark = next((match for text in words if (match := pattern.search(text))), None)
        if mark is not None:
            found[mark[0]].append(record.example_id)
    for mark, rows in found.items():
        yield (
            f"{len(rows)} of {len(case.train)} rows hold {mark}, a mark of {marks[mark]}: {listed(rows, SHOWN)}",
            "Give the plain words as messages or prompt and completion: data.template writes the marks",
            rows,
        )


@ROWS.add("Such rows count twice, and a ledger splits their value between copies", spoils="repeats an earlier row")
def duplicate_rows(case: Inspected) -> Found:
    """Training rows of your own that repeat another row's prompt and answer."""
    repeated = [] if case.published else repeated_rows(case.train)
    share = len(repeated) / max(1, len(case.train))
    if repeated:
        yield (
            f"{len(repeated)} of {len(case.train)} training rows ({share:.1%}) repeat another row's prompt and "
            f"answer: {listed(repeated, SHOWN)}",
            "Keep one of each: `ghosttune check CONFIG --fix OUT.jsonl` writes the rows without them",
            repeated,
        )


@ROWS.add("A score on them would reward memory", spoils="asks the same as a test row")
def test_rows_trained(case: Inspected) -> Found:
    """Training rows that ask the same as a row of the source's own test split."""
    shared = shared_groups(case.test, case.train)
    if shared:
        yield (
            f"{len(shared)} of {len(case.train)} training rows ask the same as a test row: {listed(shared, SHOWN)}",
            "Remove them from one of the two splits",
            shared,
        )


@ROWS.add("A score on them rewards memory")
def evaluation_rows_trained(case: Inspected) -> Found:
    """Dev and test rows of your own with a training row's prompt in other case or spacing, or most of its words."""
    import numpy as np

    if case.published:
        return
    others = case.test.where(~np.isin(case.test.groups, case.train.groups))  # the same group is another check's
    met = contamination(case.train, {"dev": case.dev, "test": others})
    for split in met.rows:
        found = [overlap for overlap in met.overlaps if overlap.split == split]
        if found:
            kinds = ", ".join(f"{count} {kind}" for kind, count in met.counts(split).items())
            named = listed((f"{overlap.example_id} as {overlap.train_example_id}" for overlap in found), SHOWN)
            yield (
                f"{len(found)} of {met.rows[split]} {split} rows were trained on ({kinds}): {named}",
                "Take them out of one of the two, or give rows that share a source the same group",
                [overlap.example_id for overlap in found],
            )


@ROWS.add("Such an answer is cut off before its end, counts as one that never stops, and cannot match")
def answers_longer_than_evaluation_allows(case: Inspected) -> Found:
    """Dev answers with more tokens than evaluate.max_new_tokens."""
    if case.template is None or case.max_new_tokens is None:
        return
    lengths = _answer_lengths(case.tokenizer, case.dev)
    long = [example_id for example_id, length in lengths.items() if length > case.max_new_tokens]
    if long:
        yield (
            f"{len(long)} of {len(lengths)} dev answers are longer than evaluate.max_new_tokens "
            f"{case.max_new_tokens}: {listed(long, SHOWN)}",
            f"Set evaluate.max_new_tokens to {max(lengths.values())}",
            long,
        )


def repeated_rows(records: Iterable[Record]) -> list[str]:
    """Ids of the rows whose content stands on an earlier row."""
    seen: set[bytes] = set()
    repeated = []
    for record in records:
        tokens = None if record.tokens is None else record.tokens.tobytes()
        content = key_of(repr((tuple(turn.words for turn in record.turns), repr(record.columns), tokens)))
        if content in seen:
            repeated.append(record.example_id)
        seen.add(content)
    return repeated


def _answer_lengths(tokenizer: Any, records: Iterable[Record]) -> dict[str, int]:
    """Tokens of each record's last answer, with its stop token."""
    answers = ((record.example_id, record.reference) for record in records if record.turns and record.reference)
    return {example_id: len(_ids(tokenizer, answer)) + 1 for example_id, answer in answers}


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids
