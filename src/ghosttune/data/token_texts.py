"""The text of single tokens."""

from __future__ import annotations

from typing import Any


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text each token adds; a character spread over several tokens is shown by the last of them."""
    texts: list[str] = []
    done = ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        texts.append(text[len(done) :] if text.startswith(done) and not text.endswith("\ufffd") else "")
        done = text if not text.endswith("\ufffd") else done
    return texts
