"""The hub: licences that its cards state, and the upload of a folder, which happens only when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ghosttune.errors import GhosttuneError
from ghosttune.foreign import read_text

CARD = 1_000_000
"""Bytes of a model card that are read."""


def stated_licence(name: str, revision: str | None) -> str | None:
    """The licence in a model's own card, from its folder or the hub's cache; None where neither says one."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    local = Path(name) / "README.md"
    found = str(local) if local.is_file() else None
    if found is None and name.count("/") == 1:
        cached = try_to_load_from_cache(name, "README.md", revision=revision)
        found = cached if isinstance(cached, str) else None
    if found is None:
        return None
    try:
        licence: Any = ModelCard(read_text(found, CARD)).data.to_dict().get("license")
    except Exception:  # a card that is none states nothing
        return None
    return licence if isinstance(licence, str) else None


def push(folder: Path, repository: str) -> str:
    """Uploads the folder to a new private repository, or the one of that name; returns its address.

    The token is the hub's own: HF_TOKEN, or that of `hf auth login`. GhosttuneError says what the hub answered.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Add the tuned model")
    except Exception as error:  # the client's errors are those of HTTP, of files and its own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise GhosttuneError(
            f"the hub did not take {folder}: {first}. The folder is complete: log in (`hf auth login`, or HF_TOKEN) "
            f"and run `hf upload {repository} {folder}`"
        ) from error
    return str(made)
