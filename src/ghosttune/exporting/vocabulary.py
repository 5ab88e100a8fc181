"""A tokenizer in the words of GGUF, where llama.cpp is known to cut texts into the very same tokens.

llama.cpp has two tokenizers for generative models: byte-level BPE, whose first cut is one of a list of expressions
that it knows by name, and SentencePiece's, which joins the pair whose piece has the highest score. A tokenizer of
Transformers is written as one of them where its parts say the same; every other is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ghosttune.errors import ModelError, listed

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""GGUF's kinds of tokens."""

SPACE = "\u2581"
"""SentencePiece's mark of a space."""

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS, SIGNS = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

OTHER_WAY = "give --llama-cpp FOLDER to let llama.cpp's own converter try it"


def _cut_by(pattern: str) -> list[dict[str, Any]]:
    return [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ]


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}

FIRST_CUTS: list[tuple[str, bool, list[dict[str, Any]]]] = [
    ("gpt-2", False, [BYTES]),
    ("smollm", False, [{"type": "Digits", "individual_digits": True}, BYTES]),
    ("qwen2", False, _cut_by(rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{SIGNS}")),
    ("dbrx", False, _cut_by(rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{SIGNS}")),
    ("llama-bpe", True, _cut_by(rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{SIGNS}")),
]
"""llama.cpp's name, whether words that are tokens are taken whole, and the parts that a tokenizer.json writes it with.

From `llm_tokenizer_bpe` of llama.cpp's src/llama-vocab.cpp.
"""


@dataclass(frozen=True)
class Vocabulary:
    """What `tokenizer.ggml.*` says; entries of tokens, kinds and scores stand at the token's id."""

    model: str
    """`gpt2` (byte-level BPE) or `llama` (SentencePiece)."""
    pre: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    puts_space: bool | None = None
    """Whether a text, and what follows a special token, begins with a space that nobody wrote."""
    notes: list[str] = field(default_factory=list)
    """Texts that llama.cpp cuts otherwise."""


def vocabulary_of(tokenizer: Any, rows: int) -> Vocabulary:
    """The tokenizer of a model with `rows` embeddings; ModelError for one that llama.cpp would not follow."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"the tokenizer {type(tokenizer).__name__} has no tokenizer.json, which GGUF is made from")
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    model = parts["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ModelError(f"a tokenizer of the kind {model['type']} cannot be written as GGUF; {OTHER_WAY}")
    tokens, kinds = _tokens(parts, rows)
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ", 1)) for pair in model["merges"]]
    if model.get("byte_fallback"):
        return Vocabulary(
            "llama", "default", tokens, kinds, _scores(tokens, kinds, merges), puts_space=_puts_space(parts)
        )
    return Vocabulary(
        "gpt2", _first_cut(parts), tokens, kinds, merges=[" ".join(pair) for pair in merges], notes=_notes(parts)
    )


def _tokens(parts: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Token and kind of each id; ids without a token are unused."""
    model = parts["model"]
    added = {entry["id"]: entry for entry in parts["added_tokens"]}
    known = {number: token for token, number in model["vocab"].items()} | {n: e["content"] for n, e in added.items()}
    if max(known) >= rows:
        raise ModelError(f"the tokenizer has the id {max(known)}, and the model {rows} embeddings; they do not belong")
    _require_plain(added.values())
    tokens, kinds = [], []
    for number in range(rows):
        token = known.get(number, f"[PAD{number}]")
        kinds.append(_kind(number, token, number in known, added, model))
        tokens.append(token.replace(SPACE, " ") if kinds[-1] == USER_DEFINED else token)
    return tokens, kinds


def _kind(number: int, token: str, is_known: bool, added: dict[int, Any], model: dict[str, Any]) -> int:
    if not is_known:
        return UNUSED
    if token == model.get("unk_token"):
        return UNKNOWN
    if number in added:
        return CONTROL if added[number]["special"] else USER_DEFINED
    return BYTE if model.get("byte_fallback") and re.fullmatch("<0x[0-9A-F]{2}>", token) else NORMAL


def _require_plain(added: Iterable[dict[str, Any]]) -> None:
    """ModelError for special tokens that take in what stands beside them: llama.cpp does so by models' names only."""
    greedy = [entry["content"] for entry in added if entry["lstrip"] or entry["rstrip"] or entry["single_word"]]
    if greedy:
        raise ModelError(
            f"the special tokens {listed(greedy, 4)} take in the spaces beside them (lstrip, rstrip or single_word), "
            f"which GGUF cannot say; {OTHER_WAY}"
        )


def _first_cut(parts: dict[str, Any]) -> str:
    """llama.cpp's name of how texts are cut before anything is merged."""
    if (parts["normalizer"] or {}).get("type") not in (None, "NFC") or (parts["decoder"] or {}).get("type") != (
        "ByteLevel"
    ):
        raise ModelError(f"the tokenizer changes texts (normalizer, decoder) as llama.cpp does not; {OTHER_WAY}")
    stages = _stages(parts["pre_tokenizer"])
    whole = bool(parts["model"].get("ignore_merges"))
    for name, takes_whole, known in FIRST_CUTS:
        if takes_whole == whole and _agree(stages, known):
            return name
    raise ModelError(
        "the tokenizer cuts texts before merging (pre_tokenizer) in a way that is none of those tried with llama.cpp "
        f"({listed(name for name, _, _ in FIRST_CUTS)}); {OTHER_WAY}"
    )


def _stages(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    return part["pretokenizers"] if part["type"] == "Sequence" else [part]


def _agree(stages: Sequence[dict[str, Any]], known: Sequence[dict[str, Any]]) -> bool:
    """Whether the stages have what the known ones say; trim_offsets says nothing of the tokens."""
    return len(stages) == len(known) and all(
        all(stage.get(name) == value for name, value in other.items())
        for stage, other in zip(stages, known, strict=True)
    )


def _notes(parts: dict[str, Any]) -> list[str]:
    if parts["normalizer"] is None:
        return []
    return ["letters written in parts (not NFC) are joined by the tokenizer and not by llama.cpp"]


def _puts_space(parts: dict[str, Any]) -> bool:
    """Whether SentencePiece's space stands before a text; ModelError for a normalizer of another kind."""
    normalizer, cut = parts["normalizer"], parts["pre_tokenizer"]
    steps = normalizer["normalizers"] if (normalizer or {}).get("type") == "Sequence" else [normalizer]
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if steps == [{"type": "Prepend", "prepend": SPACE}, spaces] and cut is None:
        return True
    by_space = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    if steps == [spaces] and cut in (None, by_space):
        return False
    schemes = {"always": True, "never": False}
    whole = {"type": "Metaspace", "replacement": SPACE, "split": False}
    if normalizer is None and _agree(_stages(cut), [whole]) and cut["prepend_scheme"] in schemes:
        return schemes[cut["prepend_scheme"]]
    raise ModelError(
        "the tokenizer puts spaces before texts (normalizer, pre_tokenizer) in a way that llama.cpp's SentencePiece "
        f"does not; {OTHER_WAY}"
    )


def _scores(tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[tuple[str, ...]]) -> list[float]:
    """A score for each piece by which llama.cpp joins pairs in the order of the merges.

    It joins any pair whose piece it has, where BPE needs the pair among its merges, in their order; the two are the
    same where every way to cut a piece in two is a merge, and the merges of one piece follow each other. ModelError
    where they do not.
    """
    pieces = {token for token, kind in zip(tokens, kinds, strict=True) if kind == NORMAL}
    first: dict[str, int] = {}
    last = ""
    for rank, (left, right) in enumerate(merges):
        piece = left + right
        if piece in first and piece != last:
            raise ModelError(f"the merges of the token {piece!r} do not follow each other, as scores do; {OTHER_WAY}")
        first.setdefault(piece, rank)
        last = piece
    known = set(merges)
    for piece in pieces:
        for cut in range(1, len(piece)):
            pair = (piece[:cut], piece[cut:])
            if pair[0] in pieces and pair[1] in pieces and pair not in known:
                raise ModelError(f"{pair[0]!r} and {pair[1]!r} are not merged, and llama.cpp would; {OTHER_WAY}")
    return [float(-first.get(token, len(merges))) for token in tokens]
