"""One call of the pipeline: the texts of a request, with their latents."""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from dataclasses import dataclass

import torch

from pipelines.sampling.classes import one_class
from pipelines.sampling.generator import TextGenerator
from pipelines.sampling.inputs import Sources
from pipelines.sampling.outputs import TextPipelineOutput
from pipelines.sampling.sampler_call import InputsFn, SampleInputs
from pipelines.sampling.step_callback import LatentRecord, SamplingStopped, StartFromNoise
from utils.records import Condition, Latents


@dataclass(frozen=True)
class Request:
    """What a call asks for."""

    n: int  # texts, or sources
    k: int  # texts for each source; 1 without sources
    seed: int
    strategy: str | None  # of decoding; None: latents alone
    classes: int | list[int] | None = None  # one for all, or one for each of n
    sources: list[str] | None = None
    noise: Latents | None = None  # to start from; None: drawn


def draw(generator: TextGenerator, request: Request, sources: Sources | None = None) -> TextPipelineOutput:
    """Sample what is asked for. sources: how sources reach the sampler, for a request with sources.

    A callback that stops the call leaves fewer texts, see step_callback. Texts that come out empty are replaced by
    further ones, but not those of sources, of given noise, or with a class for each: text i has the class i.
    """
    caller, record = generator, LatentRecord()
    generator = copy(generator)
    start = () if request.noise is None else (StartFromNoise(request.noise.x0),)
    generator.hooks = (*start, *generator.hooks, record)
    is_independent = (
        request.strategy is not None
        and request.sources is None
        and request.noise is None
        and not isinstance(request.classes, list)
    )
    output = (
        _draw_independent(generator, request, record) if is_independent else _draw(generator, request, record, sources)
    )
    caller.timer = generator.timer
    return output


def _draw(
    generator: TextGenerator, request: Request, record: LatentRecord, sources: Sources | None
) -> TextPipelineOutput:
    """Texts of sources, from given noise or with a class for each, or latents alone."""
    texts: list[str] = []
    inputs = _make_inputs(request, sources, generator.device)
    with suppress(SamplingStopped):
        if request.strategy is None:
            generator.candidates(request.n, request.k, request.seed, (), inputs, quiet=True)
        else:
            batches = generator.stream_candidates(request.n, request.k, request.seed, request.strategy, inputs)
            for _, rows in batches:
                texts += [text for row in rows for text in row]
    return TextPipelineOutput(texts, record.all())


def _draw_independent(generator: TextGenerator, request: Request, record: LatentRecord) -> TextPipelineOutput:
    """Texts without sources, the empty ones replaced."""
    assert request.strategy is not None and not isinstance(request.classes, list)
    found = []
    with suppress(SamplingStopped):
        conditions = None if request.classes is None else one_class(request.classes)
        for part in generator.stream(request.n, request.seed, request.strategy, conditions):
            found += part
    return TextPipelineOutput([text for _, text in found], record.of([origin for origin, _ in found]))


def _make_inputs(request: Request, sources: Sources | None, device: torch.device) -> InputsFn:
    """Inputs of the examples of a request: sources, classes, or the positions of given noise."""
    classes, noise = request.classes, request.noise
    rows = None
    if classes is not None:
        rows = torch.tensor([classes] * request.n if isinstance(classes, int) else classes, device=device)
    if request.sources is not None:
        assert sources is not None
        return sources.make_inputs(request.sources, request.seed, rows)

    def inputs(first: int, last: int) -> SampleInputs:
        condition = None if rows is None else Condition.of(class_id=rows[first:last])
        mask = None if noise is None else noise.mask[first:last]
        return SampleInputs(condition, mask=mask, decode_mask=mask)

    return inputs
