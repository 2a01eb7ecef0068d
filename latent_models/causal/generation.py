"""Texts of a causal language model that goes on from prefix vectors: greedy, nucleus, or beam search.

Greedy and nucleus decoding are the loop of sampling.py, in which each text has its own random numbers and leaves the
batch when it ends. Beam search is that of transformers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from latent_models.causal.boundaries import Boundaries
from latent_models.causal.sampling import Processor, sample_ids


@dataclass(frozen=True)
class DecoderSettings:
    """Arguments of transformers' generate that the decoder knows, with values that change nothing."""

    do_sample: bool = False
    num_beams: int = 1
    top_p: float = 1.0
    top_k: int = 0
    temperature: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_length: int = 0  # counts the start token
    length_penalty: float = 1.0
    early_stopping: bool = False

    @classmethod
    def of(cls, decoding: Mapping[str, Any]) -> DecoderSettings:
        """From the arguments of a decoding strategy. Raises ValueError for one that is unknown here."""
        unknown = sorted(decoding.keys() - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"a text decoder has no setting {unknown[0]}: {', '.join(f.name for f in fields(cls))}")
        made = cls(**{name: value for name, value in decoding.items() if value is not None})
        if made.do_sample and made.num_beams > 1:
            raise ValueError("a text decoder searches with beams or samples tokens, not both")
        return made

    @property
    def min_new_tokens(self) -> int:
        return max(0, self.min_length - 1)

    def processors(self, end_id: int) -> list[Processor]:
        """What changes the logits of a token given the text so far."""
        from transformers.generation import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

        found: list[Processor] = []
        if self.repetition_penalty != 1:
            found.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.no_repeat_ngram_size:
            found.append(NoRepeatNGramLogitsProcessor(self.no_repeat_ngram_size))
        if self.min_new_tokens:
            found.append(_NoEndBefore(self.min_new_tokens, end_id))
        return found


class _NoEndBefore:
    """Forbids the end token as one of the first tokens."""

    def __init__(self, count: int, end_id: int) -> None:
        self.count, self.end_id = count, end_id

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        if ids.shape[1] < self.count:
            logits[:, self.end_id] = -torch.inf
        return logits


def generate_ids(
    model: Any,
    boundaries: Boundaries,
    prefix: Tensor,
    prefix_mask: Tensor | None,
    settings: DecoderSettings,
    *,
    max_new_tokens: int,
    vocabulary: int,
    draw_rows: tuple[int, int] | None = None,
) -> list[list[int]]:
    """Token ids of each text, without start and end, at most max_new_tokens with the end.

    prefix: (B, P, d), in the dtype of the model; prefix_mask: (B, P) bool or None. vocabulary: token ids of the
    tokenizer; a model may have more. draw_rows: see PrefixDecoder.generate.
    """
    if not len(prefix):
        return []
    max_new_tokens = max(1, max_new_tokens)
    if settings.num_beams > 1:
        return _search(model, boundaries, prefix, prefix_mask, settings, max_new_tokens, vocabulary)
    first, size = draw_rows or (0, len(prefix))
    uniforms = torch.rand(size, max_new_tokens)[first : first + len(prefix)] if settings.do_sample else None
    return sample_ids(
        model,
        boundaries,
        [[boundaries.start_id]] * len(prefix),
        uniforms,
        max_new_tokens=max_new_tokens,
        vocabulary=vocabulary,
        top_p=settings.top_p,
        temperature=settings.temperature,
        top_k=settings.top_k,
        prefix=prefix,
        prefix_mask=prefix_mask,
        processors=settings.processors(boundaries.end_id),
    )


def _search(
    model: Any,
    boundaries: Boundaries,
    prefix: Tensor,
    prefix_mask: Tensor | None,
    settings: DecoderSettings,
    max_new_tokens: int,
    vocabulary: int,
) -> list[list[int]]:
    """Beam search of transformers."""
    from transformers import GenerationConfig

    start = torch.full((len(prefix), 1), boundaries.start_id, device=prefix.device)
    inputs = torch.cat([model.get_input_embeddings()(start).to(prefix), prefix], 1)
    mask = inputs.new_ones(inputs.shape[:2], dtype=torch.long)
    if prefix_mask is not None:
        mask[:, 1:] = prefix_mask.long()
    config = GenerationConfig(
        do_sample=False,
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
        repetition_penalty=settings.repetition_penalty,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        min_new_tokens=settings.min_new_tokens,
        max_new_tokens=max_new_tokens,
        suppress_tokens=[*boundaries.forbidden, *range(vocabulary, model.config.vocab_size)] or None,
        bos_token_id=boundaries.start_id,
        eos_token_id=boundaries.end_id,
        pad_token_id=boundaries.end_id,  # what follows the end is cut off
    )
    with warnings.catch_warnings():  # that penalties count the text alone, and not its prefix, as they should
        warnings.simplefilter("ignore", UserWarning)
        found = model.generate(inputs_embeds=inputs, attention_mask=mask, generation_config=config)
    ends = (row.index(boundaries.end_id) if boundaries.end_id in row else len(row) for row in found.tolist())
    return [row[:end] for row, end in zip(found.tolist(), ends, strict=True)]
