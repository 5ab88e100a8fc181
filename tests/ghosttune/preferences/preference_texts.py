"""What a sequence says."""

from __future__ import annotations

from typing import Any

import numpy as np


def texts_of(tokenizer: Any, ids: Any, trained: Any) -> tuple[str, str]:
    """(what is given, what is trained) of a sequence whose trained tokens stand together at its end."""
    ids, trained = np.asarray(ids), np.asarray(trained, bool)
    assert trained[-1]
    assert trained.tolist() == sorted(trained.tolist()), "the trained tokens are the last ones"
    return tokenizer.decode(ids[~trained]), tokenizer.decode(ids[trained])


def builtin_tokenizer() -> Any:
    """That of the built-in model."""
    from ghosttune.config.sections.model import ModelSettings
    from ghosttune.models.loading import load_tokenizer

    return load_tokenizer(ModelSettings())
