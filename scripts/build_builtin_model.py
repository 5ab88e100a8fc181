"""Builds `builtin:tiny`: trains its tokenizer and pretrains its weights on the generated corpus.

    python scripts/build_builtin_model.py

writes `src/ghosttune/models/builtin_tiny/` in about twenty minutes on one CPU core. `BUILD.json` there records what
went in and came out. Another machine gives the same tokenizer and, since float32 sums depend on the processor, nearly
the same weights: the hashes identify the shipped files, they do not promise a bit-identical rebuild.
"""

import argparse
import hashlib
import json
import logging
import math
import time
from collections.abc import Iterable
from pathlib import Path
from random import Random

import builtin_corpus
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

FOLDER = Path(__file__).parents[1] / "src/ghosttune/models/builtin_tiny"
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>")
PAD, BOS, EOS, SYSTEM, USER, ASSISTANT = range(6)
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
VOCABULARY = 1536
CONTEXT = 512
RECIPE = {
    "seed": 7,
    "documents_per_step": 16,
    "share_read_alone": 0.8,
    "packed_rows_per_step": 3,
    "learning_rate": 2e-3,
    "warmup_steps": 100,
    "betas": (0.9, 0.95),
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "learning_rate_at_the_end": 0.02,
}


def chat_text(document: builtin_corpus.Document) -> str:
    """The document as the chat template writes it; plain text stands between `<bos>` and `<eos>` alone."""
    if document[0]["role"] == "text":
        return f"<bos>{document[0]['content']}<eos>"
    return "<bos>" + "".join(f"<|{message['role']}|>{message['content']}<eos>" for message in document)


def train_tokenizer(documents: Iterable[builtin_corpus.Document]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every text can be encoded and comes back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    # Single digits, so that a number is never a token that was seen only in prices or only in lists.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((turn["content"] for document in documents for turn in document), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=list(SPECIAL_TOKENS[3:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def encoded(documents: Iterable[builtin_corpus.Document], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """The token ids of each document."""
    return tokenizer([chat_text(document) for document in documents], add_special_tokens=False)["input_ids"]


def padded(rows: list[list[int]]) -> torch.Tensor:
    """The rows, filled with `<pad>` on the right to the length of the longest."""
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def packed(documents: list[list[int]]) -> list[list[int]]:
    """Rows of at most `CONTEXT` token ids, each of whole documents; none is cut."""
    rows: list[list[int]] = [[]]
    for ids in documents:
        if len(rows[-1]) + len(ids) > CONTEXT:
            rows.append([])
        rows[-1] += ids
    return rows


def batches(documents: list[list[int]]) -> list[torch.Tensor]:
    """Token ids for each step, in the order of the documents.

    Most steps read documents of similar length, one a row, so that what is to be copied lies close by and nothing else
    distracts; the last ones read packed rows, so that all positions of the context have been seen.
    """
    random = Random(RECIPE["seed"])
    alone = int(len(documents) * RECIPE["share_read_alone"])
    size, window = RECIPE["documents_per_step"], 16 * RECIPE["documents_per_step"]
    made = []
    for start in range(0, alone, window):
        rows = sorted(documents[start : min(start + window, alone)], key=len)
        steps = [padded(rows[n : n + size]) for n in range(0, len(rows), size)]
        random.shuffle(steps)
        made += steps
    rows, size = packed(documents[alone:]), RECIPE["packed_rows_per_step"]
    return made + [padded(rows[n : n + size]) for n in range(0, len(rows), size)]


def new_model(vocabulary: int, seed: int) -> LlamaForCausalLM:
    """The model with random weights; the seed decides them."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=5,
        # About 1/sqrt(hidden_size). With the usual 0.02 so narrow a model takes several times as long to learn copying.
        initializer_range=0.08,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config)


def labels(row: list[int]) -> list[int]:
    """The tokens to be predicted: plain text and what the assistant says, `<eos>` included; -100 elsewhere.

    What a user says is drawn at random; its loss would only add noise to the signal of the answers.
    """
    wanted, predicted = False, []
    for token in row:
        if token in (PAD, BOS, SYSTEM, USER, ASSISTANT):
            wanted = token in (BOS, ASSISTANT)
            predicted.append(-100)
        else:
            predicted.append(token if wanted else -100)
    return predicted


def loss_nats(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """The mean loss per predicted token."""
    return model(input_ids=rows, labels=torch.tensor([labels(row) for row in rows.tolist()])).loss


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, documents: list[list[int]]) -> float:
    """The mean loss in nats per predicted token over all documents, each read alone."""
    documents = sorted(documents, key=len)
    rows = [padded(documents[n : n + 16]) for n in range(0, len(documents), 16)]
    targets = [sum(label != -100 for row in batch.tolist() for label in labels(row)) for batch in rows]
    return sum(loss_nats(model, batch).item() * n for batch, n in zip(rows, targets, strict=True)) / sum(targets)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a small share of the peak."""
    peak, end, warmup = (RECIPE[name] for name in ("learning_rate", "learning_rate_at_the_end", "warmup_steps"))
    if step < warmup:
        return peak * (step + 1) / warmup
    cosine = (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
    return peak * (end + (1 - end) * cosine)


def pretrain(model: LlamaForCausalLM, steps: list[torch.Tensor], held_out: list[list[int]]) -> None:
    """One pass over the training text with AdamW; logs the loss as it goes."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    scales = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": RECIPE["weight_decay"]}, {"params": scales, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=RECIPE["betas"], fused=True)
    start = time.monotonic()
    for step, rows in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(steps))
        # bfloat16 products over float32 weights: about twice as fast on a processor that has them, slow on one without.
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_nats(model, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), RECIPE["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        if step % 200 == 0 or step + 1 == len(steps):
            checked = held_out_loss(model, held_out[:64])
            seconds = time.monotonic() - start
            report = "step %d of %d: loss %.3f, held out %.3f, %.0f s"
            logging.info(report, step, len(steps), loss.item(), checked, seconds)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes a folder that `from_pretrained` loads, weights in bfloat16."""
    model.generation_config = GenerationConfig(
        do_sample=False, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, max_new_tokens=128
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    # Inside tokenizer_config.json, so that the template cannot get lost from beside it.
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes a file that only its owner can read


def sha256(path: Path) -> str:
    """The file's hash in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def build(folder: Path, limit: int | None) -> None:
    """Trains everything and writes the folder with its `BUILD.json`."""
    torch.set_num_threads(1)
    train = list(builtin_corpus.documents(held_out=False))[:limit]
    held_out = list(builtin_corpus.documents(held_out=True))
    tokenizer = train_tokenizer(train)
    train_ids, held_out_ids = encoded(train, tokenizer), encoded(held_out, tokenizer)
    tokens = sum(map(len, train_ids))
    steps = batches(train_ids)
    logging.info("%d documents, %d tokens, %d steps", len(train), tokens, len(steps))

    model = new_model(len(tokenizer), RECIPE["seed"])
    random_loss = held_out_loss(model, held_out_ids)
    start = time.monotonic()
    pretrain(model, steps, held_out_ids)
    seconds = time.monotonic() - start
    save(model, tokenizer, folder)

    shipped = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    record = {
        "built_by": "scripts/build_builtin_model.py",
        "corpus": {
            "generator": "scripts/builtin_corpus.py",
            "seed": builtin_corpus.SEED,
            "train_documents": len(train),
            "held_out_documents": len(held_out),
            "train_tokens": tokens,
            "sha256": builtin_corpus.corpus_sha256(),
        },
        "recipe": {**RECIPE, "steps": len(steps), "context": CONTEXT, "seconds": round(seconds)},
        "parameters": shipped.num_parameters(),
        "held_out_loss_nats_per_token": {
            "trained": round(held_out_loss(shipped, held_out_ids), 4),
            "random_initialisation": round(random_loss, 4),
        },
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, tokenizers)},
        "files": {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != "BUILD.json"},
    }
    (folder / "BUILD.json").write_text(json.dumps(record, indent=2) + "\n")
    logging.info("%s", record["held_out_loss_nats_per_token"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write")
    parser.add_argument("--limit", type=int, help="train on the first N documents only, to try the script")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build(arguments.out, arguments.limit)
