"""Labels as the training rows have them, and as a model's configuration names them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ghosttune.data.columns import RowFault, label_name
from ghosttune.errors import DataError, listed


def found_labels(values: Iterable[Any]) -> list[str]:
    """The different labels, numbers by size and names by alphabet; DataError when there are fewer than two."""
    names = {label_name(value) for value in values}
    if len(names) < 2:
        raise DataError(
            f"every training row has the label {listed(names)}: there is nothing to tell apart; give rows of at least "
            "two labels, or name the labels in task.labels"
        )
    numbers = all(name.lstrip("-").isdecimal() for name in names)
    return sorted(names, key=int) if numbers else sorted(names)


def place_of(label: Any, labels: Sequence[str]) -> int:
    """The output that stands for a label; RowFault when it is none of them."""
    name = label_name(label)
    if name not in labels:
        raise RowFault(f"label is {name!r}; the labels are {listed(labels)}")
    return labels.index(name)


def label_entries(labels: Sequence[str]) -> dict[str, Any]:
    """What a model's configuration says of its labels; nothing while they are not known."""
    if not labels:
        return {}
    return {"id2label": dict(enumerate(labels)), "label2id": {name: place for place, name in enumerate(labels)}}


def padding_entry(tokenizer: Any) -> dict[str, int]:
    """Decoders read their answer off the last token that is not padding, and must know padding by its token."""
    from ghosttune.data.encoding import padding_token

    return {"pad_token_id": padding_token(tokenizer)}
