"""A model that is served under a name: what of a request it takes, and how it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ghosttune.data.encoding import Encoder
from ghosttune.data.templates import Template
from ghosttune.data.turns import TOOLS, images_of
from ghosttune.errors import GhosttuneError, InputError
from ghosttune.inference.batching import RunningBatch, why_alone
from ghosttune.inference.calling import Calling
from ghosttune.inference.constraining import Constraint, Grammars
from ghosttune.inference.embedding import text_ids, vectors_of
from ghosttune.inference.embeddings import EmbeddingList, EmbeddingRequest, embedding_list
from ghosttune.inference.pipeline import Pipeline
from ghosttune.inference.protocol import ChatRequest, CompletionRequest, Request, RequestError
from ghosttune.inference.queueing import Job
from ghosttune.inference.scheduling import Answers
from ghosttune.inference.sight import IMAGE_LIMITS, ImageLimits, Sight
from ghosttune.inference.streaming import Reply, Wanted, Writing


@dataclass(frozen=True)
class Limits:
    """What a request may cost."""

    waiting: int = 16
    """Requests that may wait for a place, and for the one being read; more get 429."""
    together: int = 8
    """Answers that are written at once."""
    body_bytes: int = 256 * 1024
    images: ImageLimits = IMAGE_LIMITS
    max_new_tokens: int = 1024
    embedded_tokens: int = 32768
    """Of all texts of one request; answers wait while they are read."""
    reading_seconds: float = 10
    """In which a request is read, the wait for those before it included: templates come with the model."""


@dataclass(frozen=True)
class Asked:
    """A request as far as the model is concerned."""

    request: Request
    ids: list[int]
    """Token ids of the prompt."""
    wanted: Wanted


class Voice:
    """A model under its name; `why_alone` says why its answers cannot be written together, None where they can."""

    def __init__(self, name: str, pipeline: Pipeline, limits: Limits):
        self.name, self.pipeline, self.limits = name, pipeline, limits
        self.why_alone = why_alone(pipeline.model) if limits.together > 1 else "nothing is to be written beside it"
        self._batch = None if self.why_alone else RunningBatch(pipeline.model)
        self.sight = Sight(name, pipeline, limits.images)
        template = pipeline.encoder.template
        self._grammars = Grammars(template.tokenizer, template.stop_token_ids)
        self._plain = Encoder(Template("plain", pipeline.encoder.tokenizer), pipeline.encoder.max_length, "completion")

    def read(self, request: Request) -> Asked:
        """RequestError for what cannot be answered; nothing is cut unasked."""
        most_tokens, together = self.limits.max_new_tokens, self.limits.together
        longest = request.wanted_tokens or min(self.pipeline.max_new_tokens, most_tokens)
        if longest > most_tokens:
            raise RequestError(f"max_tokens is {longest}, at most {most_tokens}", param="max_tokens")
        if request.count > together:
            raise RequestError(f"n is {request.count}, at most {together}", param="n")
        try:
            turns, sampling = request.turns, request.sampling
            seeing = self.sight.encoder(images_of(turns))
            encoder = self._plain if isinstance(request, CompletionRequest) else seeing
            ids = encoder.whole_prompt_ids(turns)
            calling = Calling(encoder.template, turns) if turns[0].role == TOOLS else None
            constraint = self._constraint(request, calling)
        except GhosttuneError as error:  # what sampling, a schema or the chat template does not take
            raise RequestError(str(error)) from error
        most = encoder.max_length - self.pipeline.room(longest)
        if not 0 < len(ids) <= most:
            raise RequestError(
                f"the prompt has {len(ids)} tokens; 1 to {max(0, most)} fit beside an answer of up to {longest}"
            )
        self.sight.require_unsaid(ids)
        self.sight.look(ids)
        stops = encoder.template.stop_token_ids
        wanted = Wanted(stops, longest, sampling, request.stops, calling, request.likeliest, constraint)
        return Asked(request, ids, wanted)

    def read_texts(self, request: EmbeddingRequest) -> tuple[EmbeddingRequest, list[list[int]]]:
        """The tokens of what is to be embedded; RequestError for what cannot be."""
        try:
            ids = text_ids(self.pipeline.model, self.pipeline.encoder.template, request.texts)
        except GhosttuneError as error:
            raise RequestError(str(error), param="input") from error
        for row in ids:
            self.sight.require_unsaid(row)
        tokens, most = sum(map(len, ids)), self.limits.embedded_tokens
        if tokens > most:
            raise RequestError(f"the texts have {tokens} tokens together, at most {most}; send fewer", param="input")
        return request, ids

    def embeddings(self, asked: tuple[EmbeddingRequest, list[list[int]]]) -> EmbeddingList:
        """Means over each text's tokens of what the last layer says of them, of length 1."""
        from torch.nn.functional import normalize

        request, ids = asked
        vectors = normalize(vectors_of(self.pipeline.model, ids), dim=-1)
        return embedding_list(self.name, vectors, sum(map(len, ids)), request.encoding_format)

    def _constraint(self, request: Request, calling: Calling | None) -> Constraint | None:
        """What the answer is kept to."""
        if request.schema_kept is not None:
            return self._grammars.json(request.schema_kept)
        if calling is None or not isinstance(request, ChatRequest) or request.must_call is None:
            return None
        forms: list[tuple[str, dict[str, Any], str]] = []
        for function in request.must_call:
            before, behind = calling.around_arguments(function["name"])
            schema = {"type": "object", **(function.get("parameters") or {})}
            if schema["type"] != "object":
                raise InputError(f"the parameters of {function['name']} have type {schema['type']!r}; must be 'object'")
            forms.append((before, schema, behind))
        return self._grammars.calls(forms)

    def answering(self, asked: Asked, tell: Callable[[str, Any], None]) -> Job:
        """The job whose result is the list of replies; it tells `piece`s as (answer, text, tokens noted with it)."""
        if self._batch is None:
            return Job(partial(self._alone, asked), tell)
        job = Answers(self._batch, asked.ids, [], tell)
        job.writings = self._writings(asked, job)
        return job

    def _alone(self, asked: Asked, job: Job) -> list[Reply]:
        return [self.pipeline.written(asked.ids, writing) for writing in self._writings(asked, job)]

    def _writings(self, asked: Asked, job: Job) -> list[Writing]:
        """One for each answer; answer n draws with the seed plus n."""
        sampling = asked.wanted.sampling
        return [
            self._writing(asked, replace(sampling, seed=(sampling.seed + place) % 2**63), place, job)
            for place in range(asked.request.count)
        ]

    def _writing(self, asked: Asked, sampling: Any, place: int, job: Job) -> Writing:
        def said(piece: str) -> bool:
            if piece and asked.request.stream:
                job.tell("piece", (place, piece, writing.news()))
            return job.left

        is_heard = asked.request.stream or self._batch is None  # where it is written alone, nobody else looks at `left`
        wanted = replace(asked.wanted, sampling=sampling)
        writing = Writing(self.pipeline.encoder.tokenizer, len(asked.ids), wanted, said if is_heard else None)
        return writing
