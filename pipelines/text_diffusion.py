"""A trained run as a Python object.

from pipelines.text_diffusion import TextDiffusionPipeline

pipeline = TextDiffusionPipeline.from_run("runs/quickstart/diffusion", sampling_timesteps=50)
pipeline(8, seed=1, decoding="greedy")             # eight texts
pipeline.of_sources(["Where is the station?"], candidates=5)  # of a run on pairs: a text for each source
pipeline(8, class_id="sports", guidance=2.0)       # of a class-conditional run: eight of one class
pipeline.infill(["The ___ apple is ___."], 5)     # of a run of embeddings: five ways to fill the blanks
pipeline.vary(["One text."], 3, strength=0.7)      # three texts like it; with class_id, of that class
pipeline.interpolate("One text.", "Another.", 5)   # five texts from one to the other
pipeline.trajectory(3)                             # three texts on their way from noise
latents = pipeline.encode(["One text.", "Another."])  # and the way into the latent space and back
pipeline.decode(latents)
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, Self

import torch

from evaluation import mbr
from latent_models.decoding import one_strategy
from pipelines.data.tokens import batch_of
from pipelines.parts import make_generator, make_sources
from pipelines.sampling.classes import class_number, listed, one_class
from pipelines.sampling.generate import Conditions, TextGenerator
from pipelines.sampling.infilling import tell_blanks
from pipelines.sampling.rewriting import between, rewritten, through_noise
from pipelines.sampling.sources import Sources
from pipelines.sampling.trajectory import View
from pipelines.trained import load_run
from utils import distributed
from utils.errors import UserError
from utils.records import Condition, Latents


class TextDiffusionPipeline:
    """Samples texts, and moves texts to latents and back, with the averaged weights of a run."""

    def __init__(
        self,
        generator: TextGenerator,
        class_names: Sequence[str] = (),
        sources: Sources | None = None,
        knows_null: bool = True,
    ) -> None:
        """sources: how they reach the sampler, of a run on pairs. knows_null: whether it can do without a class."""
        self.generator, self.class_names, self.sources = generator, tuple(class_names), sources
        self.knows_null = knows_null
        self.sampler = "custom"  # its name
        self.is_student = False  # of --distill_run: samples in its own steps alone
        self.taught = 1.0  # weight of the guidance that a student has in its weights
        self.decoding: str | None = None  # that was asked for, by a flag or a preset, where a call says none

    @classmethod
    def from_run(cls, folder: str | Path, *, device: str = "auto", flags: Sequence[str] = (), **named: Any) -> Self:
        """Load a run folder. named: flags that an evaluation may set, such as preset, sampler or sampling_timesteps.

        flags: the same as they are typed. The corpus is not needed. Texts are drawn in blocks of training's batch size,
        and a call for fewer costs as much: eval_batch_size=8 makes blocks of eight, and other texts. UserError where
        the folder is no run, or a flag is fixed by training.
        """
        run = load_run(folder, device=device, flags=flags, **named)
        settings, parts, names = run.settings, run.parts, run.class_names
        autocast = distributed.autocast(run.device, settings.mixed_precision)
        knows_null = not names or settings.class_unconditional_prob > 0
        sources = make_sources(settings, parts, run.device, autocast)
        made = cls(make_generator(settings, parts, run.device, autocast), names, sources, knows_null)
        made.sampler, made.is_student = settings.sampler, settings.distill_run is not None
        made.taught = settings.distill_guidance if made.is_student else 1.0
        made.decoding = settings.decoding if {"decoding", "preset"} & settings.typed else None
        return made

    def __call__(
        self,
        n: int = 8,
        *,
        seed: int = 42,
        decoding: str | None = None,
        class_id: int | str | Sequence[int | str] | None = None,
        guidance: float | None = None,
    ) -> list[str]:
        """n texts, the same for the same seed.

        decoding: None: that of from_run or its preset, else beam. class_id: the class asked for, by number or name, or
        one for each text; None: no condition. guidance: weight of classifier-free guidance; None: that of from_run, 1
        unless cls_free_guidance was given there.
        """
        strategy = self._strategy(decoding, "beam")
        conditions = self._told(class_id, n)
        generator = self._guided(guidance, conditions is not None)
        return generator.sample(n, seed, (strategy,), conditions, quiet=True).texts[strategy]

    def of_sources(
        self,
        sources: Sequence[str],
        *,
        candidates: int = 1,
        utility: str = "rouge2",
        seed: int = 42,
        decoding: str | None = None,
        class_id: int | str | None = None,
    ) -> list[str]:
        """A text for each source: of several candidates the one that agrees best with the others by `utility`."""
        rows = self.candidates(sources, candidates, seed=seed, decoding=decoding, class_id=class_id)
        return mbr.choose(rows, utility, device=str(self.generator.device))

    def candidates(
        self,
        sources: Sequence[str],
        k: int = 5,
        *,
        seed: int = 42,
        decoding: str | None = None,
        class_id: int | str | None = None,
    ) -> list[list[str]]:
        """k texts for each source, which is read once."""
        strategy = self._strategy(decoding, "beam")
        if self.sources is None:
            raise UserError("this run was trained without sources: train one on a corpus of pairs")
        n, generator = len(sources), self.generator
        classes = None if class_id is None else torch.full((n,), self._class(class_id), device=generator.device)
        told = self.sources.tell(sources, seed, classes)
        return generator.candidates(n, k, seed, (strategy,), told, quiet=True)[strategy]

    def infill(self, texts: Sequence[str], k: int = 1, *, seed: int = 42) -> list[list[str]]:
        """k fillings of each text, of which only the blanks are written: ___ is one token, [blank:3] are three.

        For runs of --latent_space embeddings.
        """
        generator = self.generator
        told = tell_blanks(generator.space, texts, generator.device)
        return generator.candidates(len(texts), k, seed, ("greedy",), told, quiet=True)["greedy"]

    def vary(
        self,
        texts: Sequence[str],
        k: int = 1,
        *,
        strength: float = 0.7,
        seed: int = 42,
        decoding: str | None = None,
        class_id: int | str | None = None,
        guidance: float | None = None,
    ) -> list[list[str]]:
        """k texts like each of `texts`: noised to time `strength` and denoised again. class_id: towards that class.

        strength: in (0, 1]; the larger, the less is kept. For runs that need no source.
        """
        self._needs_no_source("vary")
        self._told(class_id, len(texts))  # whether this run knows that class, or none
        clean = self.encode(texts).repeat(k)
        classes = None if class_id is None else torch.full((len(clean),), self._class(class_id))
        condition = None if classes is None else Condition.of(class_id=classes)
        latents = rewritten(self._guided(guidance, condition is not None), clean, strength, seed, condition)
        written = self.decode(latents, decoding, seed)
        return [written[i : i + k] for i in range(0, len(written), k)]

    def interpolate(
        self,
        first: str,
        second: str,
        n: int = 5,
        *,
        strength: float | None = None,
        invert: bool = False,
        seed: int = 42,
        decoding: str | None = None,
    ) -> list[str]:
        """n texts from one to another: latents on the arc between them, noised alike to time `strength` and denoised.

        strength: in (0, 1], unset 0.5; noise enough that each becomes a text of its own, and so little that the ends
        stay near. invert: the arc is between the noise that DDIM would make each of instead, and the ends come back as
        they were, but for what is lost; nothing is drawn. No student can do it.
        Source: Ho et al. 2020, arXiv:2006.11239, section 4.3; inverted, Song et al. 2021, arXiv:2010.02502, section
        5.3. Needs a space in which all texts are equally long.
        """
        self._needs_no_source("interpolate")
        self._told(None, n)
        if n < 2:
            raise UserError(f"{n} texts from one to another: ask for 2 or more, the ends included")
        if self.generator.space.masked:
            raise UserError("texts of this run's space differ in length, and nothing lies between them: use vary")
        ends = self.encode([first, second])
        if invert:
            if strength is not None:
                raise UserError(
                    f"strength {strength:g} is noise that is added, and inversion adds none: give one of them"
                )
            if self.is_student:
                raise UserError("a student knows the way from noise alone: invert its teacher, or leave inversion out")
            return self.decode(through_noise(self.generator, ends[:1], ends[1:], n), decoding, seed)
        arc = between(ends[:1], ends[1:], n)
        arc = Latents(self.generator.space.project(arc.x0), arc.mask)
        strength = 0.5 if strength is None else strength
        return self.decode(rewritten(self.generator, arc, strength, seed, alike=True), decoding, seed)

    def trajectory(self, n: int = 3, *, views: int = 20, seed: int = 42, **told: Any) -> list[View]:
        """n texts on their way from noise, views times; the last are what the call gives. told: as of the call."""
        watched = copy(self)
        watched.generator = copy(self.generator)
        looking = watched.generator.watched(texts=n, views=views)
        watched(n, seed=seed, **{"decoding": "greedy", **told})
        return looking.views

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Latents:
        """Clean, normalised latents (n, L, D) of texts."""
        batch = batch_of(self.generator.space.space, texts, self.generator.max_length).to(self.generator.device)
        return self.generator.space.encode(batch)

    def decode(self, latents: Latents, decoding: str | None = None, seed: int = 42) -> list[str]:
        """Texts of latents."""
        strategy = self._strategy(decoding, "greedy")
        return self.generator.decode(latents, strategy, seed)

    def _needs_no_source(self, what: str) -> None:
        if self.sources is not None:
            raise UserError(f"this run writes from sources, and {what} has none to give it: use candidates")

    def _told(self, class_id: int | str | Sequence[int | str] | None, n: int) -> Conditions | None:
        if class_id is None:
            if not self.knows_null:
                raise UserError("this run never learned to do without a class: give class_id")
            return None
        if isinstance(class_id, int | str):
            return one_class(self._class(class_id))
        if len(class_id) != n:
            raise UserError(f"{len(class_id)} classes for {n} texts: give one class, or one for each text")
        return listed([self._class(c) for c in class_id])

    def _guided(self, weight: float | None, conditional: bool) -> TextGenerator:
        if weight is None:
            return self.generator
        if weight != 1 and not conditional:
            raise UserError(f"guidance {weight:g} needs a condition to follow: give class_id too, or leave it out")
        if weight != 1 and self.taught != 1:
            raise UserError(
                f"guidance {weight:g}: this student was taught with a guidance of {self.taught:g}, which is in its "
                "weights: leave it out"
            )
        if weight != 1 and not self.knows_null:
            raise UserError(f"guidance {weight:g} needs a network that learned to do without a class: leave it out")
        guided = copy(self.generator)
        guided.guidance = weight
        return guided

    def _strategy(self, decoding: str | None, usual: str) -> str:
        return one_strategy(decoding or self.decoding or usual)

    def _class(self, wanted: int | str) -> int:
        return class_number(wanted, self.class_names)
