"""What a language model makes of a corpus' latents, as tokens: what a drafter of a forgetful autoencoder is to learn.

Sequence-level distillation: Kim & Rush 2016, arXiv:1606.07947.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from dataset_utils.batching import TokenTable
from latent_models.compressed import CompressedSpace
from latent_models.decoding import DECODING
from pipelines.inputs.latents import ENCODED_TOGETHER, Encoded
from pipelines.inputs.tokens import TokenSplit
from utils.distributed import Ranks, gather_objects
from utils.progress import Progress


@torch.no_grad()
def written_split(space: CompressedSpace, texts: Encoded, max_length: int, title: str, ranks: Ranks) -> TokenSplit:
    """The split with the tokens that greedy decoding writes from its latents; the ranks share the work.

    texts: as latents. max_length: of a text in tokens.
    """
    model, data = space.language_model, texts.data
    ids, lengths = np.zeros((len(data), max_length), data.table.ids.dtype), np.zeros(len(data), np.int32)
    mine: list[tuple[int, np.ndarray, np.ndarray]] = []
    with Progress(f"write {title} (greedy)", len(data), unit="text", quiet=not ranks.main) as bar:
        for i, rows in enumerate(torch.arange(len(data)).split(ENCODED_TOGETHER)):
            if i % ranks.world == ranks.rank:
                memory = space.autoencoder.decode(texts(rows).x0)
                found = [row[1:].cpu().numpy() for row in model.write(memory, None, max_length, **DECODING["greedy"])]
                part = np.zeros((len(rows), max_length), ids.dtype)
                count = np.array([int((row != model.pad_id).sum()) for row in found], np.int32)
                for place, (row, n) in enumerate(zip(found, count, strict=True)):
                    part[place, :n] = row[:n]
                mine.append((int(rows[0]), part, count))
            bar.advance(len(rows))
    for start, part, count in gather_objects(ranks, mine):
        ids[start : start + len(part)], lengths[start : start + len(part)] = part, count
    return replace(data, table=TokenTable(ids, np.maximum(lengths, 1), 0.0, max_length))
