"""Checks of the arguments of a pipeline's methods, against what its run can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import torch

from pipelines.data.tokens import make_batch, tokenizer_of
from pipelines.pretrained.pipeline import PretrainedPipeline
from pipelines.pretrained.reconfigure import with_flags
from pipelines.sampling.arguments import check_count, check_texts
from pipelines.sampling.blocks import Segment, segments
from pipelines.sampling.call_arguments import check_guidance, find_class, find_classes
from pipelines.sampling.generator import TextGenerator
from pipelines.sampling.inputs import PackedSources, starts
from pipelines.sampling.sampler_call import SampleInputs
from pipelines.sampling.sdedit import sdedit
from utils.cli.flags import shown
from utils.errors import UserError
from utils.records import Condition, Latents
from utils.seeding import derive_seed

MOST_STEPS = 100_000
OnRows = Callable[[list[list[str]]], None]  # gets the rows of texts that are done, one row for each given text


@dataclass(frozen=True)
class GivenTexts:
    """Texts from which sampling starts, checked; source and class of each, where the run takes them."""

    texts: list[str]
    sources: list[str] | None
    classes: torch.Tensor | None  # (n,) int64, on the device of the pipeline

    def parts(self, size: int) -> Iterator[tuple[int, GivenTexts]]:
        """So many texts at a time: (number of the first one, texts)."""
        for first in range(0, len(self.texts), size):
            rows = slice(first, first + size)
            sources = None if self.sources is None else self.sources[rows]
            yield first, GivenTexts(self.texts[rows], sources, None if self.classes is None else self.classes[rows])


class CheckedPipeline(PretrainedPipeline):
    """Every method raises UserError, in one line that names the argument."""

    def _check_texts(self, texts: Sequence[str]) -> list[str]:
        """Texts for the latent space: see check_texts."""
        length = self.generator.max_length
        return check_texts(texts, tokenizer=tokenizer_of(self.generator.space.space), limit=(length, length))

    def _check_sources(self, sources: Sequence[str]) -> list[str]:
        if self.sources is None:
            raise UserError("this run was trained without sources: train one on a corpus of pairs")
        return check_texts(sources, "source", tokenizer=self.sources.tokenizer, limit=self.sources.limit)

    def _check_no_sources(self, method: str) -> None:
        if self.sources is not None:
            raise UserError(
                f"this run generates from sources, and {method} returns the noise of texts alone: use interpolate with "
                "source and invert, or candidates"
            )

    def _sources_of(self, texts: Sequence[str], source: str | Sequence[str] | None, method: str) -> list[str] | None:
        """The source of each text: one for all, or one for each; None for a run without sources."""
        if source is None:
            if self.sources is not None:
                raise UserError(
                    f"this run generates from sources, and {method} needs those of its texts: give source, one for "
                    "all texts or one for each (--source of the programs)"
                )
            return None
        given = self._check_sources([source] if isinstance(source, str) else source)
        if len(given) not in (1, len(texts)):
            raise UserError(f"{len(given)} sources for {len(texts)} texts: give one source, or one for each text")
        return given * len(texts) if len(given) == 1 else given

    def _given(
        self, texts: Sequence[str], source: str | Sequence[str] | None, class_id: int | str | None, method: str
    ) -> GivenTexts:
        """Texts from which sampling starts, with their sources and classes."""
        texts = self._check_texts(texts)
        of_texts, classes = self._sources_of(texts, source, method), self._class_rows(class_id, len(texts))
        return GivenTexts(texts, of_texts, None if classes is None else classes.to(self.generator.device))

    @torch.no_grad()
    def _start(self, given: GivenTexts) -> tuple[Latents, SampleInputs]:
        """Clean latents of texts and the inputs with which sampling starts from them: their sources and classes."""
        texts, of_texts, classes = given.texts, given.sources, given.classes
        if of_texts is not None:
            assert self.sources is not None
            return starts(self.sources, self._encode, texts, of_texts, classes)
        clean = self._encode(texts)
        return clean, SampleInputs(Condition.of(class_id=classes) if classes is not None else None, mask=clean.mask)

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> Latents:
        """Clean latents of texts, computed in batches of the generator's size."""
        generator = self.generator

        def encode(some: Sequence[str]) -> Latents:
            return generator.space.encode(make_batch(generator.space.space, some, generator.max_length).to(self.device))

        size = generator.batch_size
        return Latents.concat([encode(texts[first : first + size]) for first in range(0, len(texts), size)])

    def _decode(self, latents: Latents, strategy: str, seed: int) -> list[str]:
        """Texts of latents, computed in batches of the generator's size.

        What a strategy draws does not depend on that size: it is drawn for a block of texts (sampling/blocks), the
        first of them with the seed itself.
        """
        generator, texts = self.generator, []
        draws = generator.space.decoding_draws or generator.decoding[strategy].get("do_sample")
        for block in segments(0, len(latents), generator.block_size):
            own = seed if block.block == 0 else derive_seed(seed, "block", block.block)
            begin = block.block * block.size
            for first in range(0, len(block), generator.batch_size):
                rows = Segment(block.block, first, min(first + generator.batch_size, len(block)), len(block))
                part = latents[begin + rows.first : begin + rows.last]
                texts += generator.decode(part, strategy, own, rows if draws else None)
        return texts

    def _rewrite(
        self,
        generator: TextGenerator,
        given: GivenTexts,
        k: int,
        strength: float,
        seed: int,
        strategy: str,
        change: Callable[[Latents], Latents] = lambda clean: clean,
        on_rows: OnRows | None = None,
    ) -> list[list[str]]:
        """k texts from each given one: its latents changed, noised and denoised again.

        As many texts at a time as fit a block of random numbers with k each. The first of these parts has the seed
        itself; that of a later one follows from the number of its first text.
        generator: samples, with the guidance of the call. change: of clean latents. on_rows: gets the rows of a part.
        """
        found: list[list[str]] = []
        for first, part in given.parts(max(1, generator.block_size // k)):
            own = seed if first == 0 else derive_seed(seed, "text", first)
            clean, inputs = self._start(part)
            latents = sdedit(generator, change(clean).repeat(k), strength, own, inputs.repeat(k))
            texts = self._decode(latents, strategy, own)
            rows = [texts[i : i + k] for i in range(0, len(texts), k)]
            if on_rows is not None:
                on_rows(rows)
            found += rows
        return found

    def _check_equal_lengths(self, texts: Sequence[Latents], verb: str) -> None:
        """UserError unless all texts have the same number of latents. verb: what cannot be done otherwise."""
        counts = torch.cat([latents.mask.sum(1) for latents in texts]).tolist()
        if len(set(counts)) > 1:
            raise UserError(
                f"texts of {min(counts)} to {max(counts)} latents differ in length and cannot be {verb}: give texts "
                "with equally many tokens (sentences, with --pooling sentences), or use variations"
            )

    def _check_no_student(self) -> None:
        if self.is_student:
            raise UserError("DDIM inversion fails for a distilled student: use its teacher, or leave it out")

    def _class_rows(self, class_id: int | str | None, n: int) -> torch.Tensor | None:
        """A class for each of n texts (n,); None without one. UserError if the run has no null class then."""
        if class_id is None:
            find_classes(None, n, self.class_names, self.has_null_class)
            return None
        return torch.full((n,), find_class(class_id, self.class_names))

    def _check_null_class(self, method: str) -> None:
        """UserError for a method that takes no class, if the run was trained with a class for every text."""
        if not self.has_null_class:
            raise UserError(
                f"this run was trained without a null class, and {method} takes no class: use variations with class_id"
            )

    def _sizes(self, num_samples: int | None, sources: list[str] | None, noise: Latents | None) -> tuple[int, int]:
        """How many texts or sources, and how many texts for each source."""
        count = None if num_samples is None else check_count(num_samples, "num_samples")
        if sources is not None:
            if noise is not None:
                raise UserError("latents and source cannot be combined: give one of them")
            return len(sources), count or 1
        if noise is None:
            return count or 8, 1
        space = self.generator.space
        if not isinstance(noise, Latents) or noise.x0.shape[1:] != (space.length, space.dim) or not len(noise):
            found = tuple(noise.x0.shape) if isinstance(noise, Latents) else shown(noise)
            raise UserError(f"latents are {found}: give what invert returns, of shape (n, {space.length}, {space.dim})")
        if count not in (None, len(noise)):
            raise UserError(f"num_samples is {count}, and latents are of {len(noise)} texts: leave num_samples out")
        return len(noise), 1

    def _with_guidance(
        self, weight: float | None, by_class: bool, by_source: bool = False, name: str = "guidance"
    ) -> TextGenerator:
        """The generator, or a copy with another weight of guidance; see check_guidance. name: of the argument."""
        if weight is None:
            return self.generator
        packed = isinstance(self.sources, PackedSources) and not self.sources.has_null
        weight = check_guidance(
            weight,
            name,
            by_class=by_class,
            by_source=by_source and not packed,
            packed=by_source and packed,
            has_null_class=self.has_null_class,
            with_sources=self.sources is not None,
            has_null_source=self.run.settings.get("seq2seq_unconditional_prob") > 0,
            distilled=self.distilled_guidance,
        )
        generator = copy(self.generator)
        generator.guidance = weight
        return generator

    def _with_steps(self, generator: TextGenerator, steps: int | None) -> TextGenerator:
        """A copy of a generator with another number of steps; None: that of from_pretrained."""
        generator = copy(generator)
        if steps is None:
            return generator
        steps = check_count(steps, "num_inference_steps", at_most=MOST_STEPS)
        if steps not in self._processes:
            try:
                self._processes[steps] = with_flags(self.run.settings, sampling_timesteps=steps)[1]
            except UserError as error:
                raise UserError(str(error).replace("--sampling_timesteps", "num_inference_steps")) from error
        generator.process, generator.steps = self._processes[steps], steps
        return generator
