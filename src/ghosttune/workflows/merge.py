"""A run as a plain model folder, with its logits compared before anybody can use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ghosttune.config.loading import load_config
from ghosttune.config.sections.model import ModelSettings
from ghosttune.errors import RunError
from ghosttune.inference.pipeline import Pipeline
from ghosttune.models.loading import load_model, processor_files, sees
from ghosttune.models.merging import (
    TOLERANCES,
    Answering,
    merged,
    probe_logits,
    require_equal,
    write_merged,
)
from ghosttune.run.directory import RunDir, write_folder


def merge(run: str | Path, out: str | Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Writes the run's best adapter, added into its base, to the new folder `out`; says how far the logits moved.

    The folder appears only when what was written and read again gives the adapter's logits within the tolerance of its
    precision.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is not empty; give an empty or new folder with --out")
    config = load_config(RunDir(run).open().config, trust_remote_code=trust_remote_code)
    pipeline = Pipeline.from_run(run, device="cpu", trust_remote_code=trust_remote_code)
    adapter_logits = probe_logits(pipeline.model)
    settings = config.model
    answering = Answering(
        config.data.template,
        config.data.max_length,
        config.evaluate.max_new_tokens,
        settings.dtype,
        settings.name,
        settings.revision,
    )
    model, tokenizer = merged(pipeline.model), pipeline.encoder.template.tokenizer
    moved: list[float] = []

    def fill(partial: Path) -> None:
        write_merged(model, tokenizer, answering, partial, processor_files(settings) if sees(model) else ())
        place, trusted = str(partial.resolve()), settings.trust_remote_code
        written = load_model(
            ModelSettings(name=place, dtype=settings.dtype, trust_remote_code=trusted), config.train.seed
        )
        moved.append(require_equal(adapter_logits, probe_logits(written.eval()), settings.dtype))

    write_folder(folder, fill)
    return {"merged": str(folder), "moved": moved[0], "tolerance": TOLERANCES[settings.dtype]}
