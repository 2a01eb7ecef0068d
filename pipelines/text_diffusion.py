"""A trained run as a Python object.

from pipelines.text_diffusion import TextDiffusionPipeline

pipeline = TextDiffusionPipeline.from_pretrained("runs/quickstart/diffusion", sampling_timesteps=50)
pipeline.sample(8, seed=1, decoding="greedy")                 # eight texts; pipeline(8, ...) is the same
pipeline.sample(8, class_id="sports", guidance=2.0)           # class-conditional run: eight texts of one class
pipeline.generate_from_sources(["Where is it?"], candidates=5)  # run on pairs: a text for each source
pipeline.infill(["The ___ apple is ___."], 5)                 # five ways to fill the blanks
pipeline.variations(["One text."], 3, strength=0.7)           # three texts like it; with class_id, of that class
pipeline.interpolate("One text.", "Another.", 5)              # five texts from one to the other
pipeline.trajectory(3)                                        # three texts on their way from noise
latents = pipeline.encode(["One text.", "Another."])          # texts to latents
pipeline.decode(latents)                                      # latents to texts
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, Self

import torch

from dataset_utils.labels import canonical_label
from evaluation import mbr
from latent_models.generation.decoding import DECODING, one_strategy
from pipelines.components import make_generator, make_sources
from pipelines.data.tokens import make_batch, tokenizer_of
from pipelines.load_run import FlagValue, load_run
from pipelines.sampling.arguments import check_count, check_number, check_seed, check_texts
from pipelines.sampling.classes import class_index, one_class, per_text_classes
from pipelines.sampling.generator import TextGenerator
from pipelines.sampling.infilling import infill
from pipelines.sampling.inputs import Sources
from pipelines.sampling.sampler_call import ConditionFn
from pipelines.sampling.sdedit import ddim_inversion_path, sdedit, slerp
from pipelines.sampling.trajectory import Snapshot
from utils import distributed
from utils.cli.flags import shown
from utils.compile import set_kernels
from utils.errors import UserError
from utils.records import Condition, Latents


class TextDiffusionPipeline:
    """Samples texts, and maps texts to latents and back, with the averaged weights of a run."""

    def __init__(
        self,
        generator: TextGenerator,
        class_names: Sequence[str] = (),
        sources: Sources | None = None,
        *,
        has_null_class: bool = True,
        sampler: str = "custom",
        is_student: bool = False,
        distilled_guidance: float = 1.0,
        decoding: str | None = None,
    ) -> None:
        """sources: how sources reach the sampler, for a run on pairs. has_null_class: whether the network was trained
        without a class too. sampler: its name. is_student: whether it was trained with --distill_run, which fixes the
        number of steps.
        distilled_guidance: guidance weight that a student has in its weights. decoding: strategy of calls that name
        none; None: each method's own default.
        """
        self.generator, self.class_names, self.sources = generator, tuple(class_names), sources
        self.has_null_class, self.sampler, self.is_student = has_null_class, sampler, is_student
        self.distilled_guidance, self.decoding = distilled_guidance, decoding

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str = "auto", argv: Sequence[str] = (), **flags: FlagValue
    ) -> Self:
        """Load a run folder; the corpus is not needed.

        device: auto, cuda, mps or cpu. flags: flags that an evaluation may set, such as preset="fast" or
        sampling_timesteps=20. argv: flags in the form of a command line. Texts are sampled in batches of the training
        batch size, so a call for fewer texts costs as much as a full batch; with eval_batch_size=8 batches have eight
        texts, which differ. Raises UserError if the folder is not the run of a denoiser, or training fixed a flag.
        """
        run = load_run(folder, device=device, argv=argv, **flags)
        settings, components = run.settings, run.components
        set_kernels(settings.config.kernels, run.device, unless_set=True)
        autocast = distributed.autocast(run.device, settings.config.loop.mixed_precision)
        is_student = settings.config.distillation.distill_run is not None
        return cls(
            make_generator(settings, components, run.device, autocast, whole_blocks=False),
            run.class_names,
            make_sources(settings, components, run.device, autocast),
            has_null_class=not run.class_names or settings.config.process.class_unconditional_prob > 0,
            sampler=settings.config.sampling.sampler,
            is_student=is_student,
            distilled_guidance=settings.config.distillation.distill_guidance if is_student else 1.0,
            decoding=settings.config.evaluation.decoding if {"decoding", "preset"} & settings.explicit else None,
        )

    # ---- texts -----------------------------------------------------------------------------------------------------

    def sample(
        self,
        n: int = 8,
        *,
        seed: int = 42,
        decoding: str | None = None,
        class_id: int | str | Sequence[int | str] | None = None,
        guidance: float | None = None,
    ) -> list[str]:
        """n texts, the same for the same seed.

        decoding: beam, nucleus or greedy; None: the one given to from_pretrained or its preset, else beam. class_id: a
        class by number or name, or one for each text; None: no class. guidance: weight of classifier-free guidance;
        None: that of from_pretrained, which is 1 (unguided) unless cls_free_guidance was given there.
        """
        n, seed, strategy = check_count(n, "n"), check_seed(seed), self._strategy(decoding, "beam")
        conditions = self._conditions(class_id, n)
        generator = self._with_guidance(guidance, conditions is not None)
        return generator.sample(n, seed, (strategy,), conditions, quiet=True).texts[strategy]

    __call__ = sample

    def generate_from_sources(
        self,
        sources: Sequence[str],
        *,
        candidates: int = 1,
        utility: str = "rouge2",
        seed: int = 42,
        decoding: str | None = None,
        class_id: int | str | None = None,
    ) -> list[str]:
        """A text for each source: the candidate with the highest mean `utility` against the other candidates."""
        if utility not in mbr.UTILITIES:
            raise UserError(f"utility is {shown(utility)}: give one of {', '.join(mbr.UTILITIES)}")
        candidates = check_count(candidates, "candidates")
        rows = self.candidates(sources, candidates, seed=seed, decoding=decoding, class_id=class_id)
        return mbr.mbr_select(rows, utility, device=str(self.generator.device))

    def candidates(
        self,
        sources: Sequence[str],
        k: int = 5,
        *,
        seed: int = 42,
        decoding: str | None = None,
        class_id: int | str | None = None,
    ) -> list[list[str]]:
        """k texts for each source. Each source is encoded once."""
        k, seed, strategy = check_count(k, "k"), check_seed(seed), self._strategy(decoding, "beam")
        if self.sources is None:
            raise UserError("this run was trained without sources: train one on a corpus of pairs")
        sources = check_texts(sources, "source", tokenizer=self.sources.tokenizer, limit=self.sources.limit)
        n, generator = len(sources), self.generator
        classes = None if class_id is None else torch.full((n,), self._class_index(class_id), device=generator.device)
        inputs = self.sources.make_inputs(sources, seed, classes)
        return generator.candidates(n, k, seed, (strategy,), inputs, quiet=True)[strategy]

    def infill(
        self, texts: Sequence[str], k: int = 1, *, seed: int = 42, strength: float | None = None
    ) -> list[list[str]]:
        """k versions of each text with its blanks filled: ___ is one token, [blank:3] are three.

        The given text stays as typed. strength: time in (0, 1] to which the latents of the given text are noised; None:
        0.5. Not for token embeddings, where given words are never noised, nor for runs on latents with sources.
        UserError for a text without blanks, or one that is too long.
        """
        k, seed, texts = check_count(k, "k"), check_seed(seed), check_texts(texts)
        if self.generator.space.has_text_decoder:
            self._check_no_sources("infill")
            self._conditions(None, len(texts))  # raises where the run lacks a null class
        return infill(self.generator, texts, k, seed, strength)

    def variations(
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
        """k variations of each text: noised to time `strength` and denoised again (SDEdit), with class_id if given.

        strength: in (0, 1]; a larger value preserves less of the text. For runs that were trained without sources.
        """
        self._check_no_sources("variations")
        k, seed, strength = check_count(k, "k"), check_seed(seed), check_number(strength, "strength")
        texts = self._check_texts(texts)
        self._conditions(class_id, len(texts))  # raises where the run lacks that class, or a null class
        clean = self._encode(texts).repeat(k)
        classes = None if class_id is None else torch.full((len(clean),), self._class_index(class_id))
        condition = None if classes is None else Condition.of(class_id=classes)
        latents = sdedit(self._with_guidance(guidance, condition is not None), clean, strength, seed, condition)
        found = self.decode(latents, decoding, seed)
        return [found[i : i + k] for i in range(0, len(found), k)]

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
        """n texts from one to another: points on the arc between their latents, noised and denoised again.

        strength: time in (0, 1] to which all points are noised, with the same noise; None: 0.5. The larger, the more
        fluent the texts; the smaller, the closer the ends stay to the two texts. invert: take the arc between the
        noises that DDIM inversion finds for the two texts instead; the ends are then reconstructions of them, and
        nothing is drawn. Not for distilled students.
        Source: Ho et al. 2020, arXiv:2006.11239, section 4.3; with invert, Song et al. 2021, arXiv:2010.02502, section
        5.3. For spaces in which all texts have the same number of positions.
        """
        self._check_no_sources("interpolate")
        n, seed = check_count(n, "n", at_least=2), check_seed(seed)
        strength = None if strength is None else check_number(strength, "strength")
        texts = self._check_texts([first, second])
        self._conditions(None, n)  # raises where the run lacks a null class
        if self.generator.space.variable_length:
            raise UserError("texts of this run's space differ in length and cannot be interpolated: use variations")
        ends = self._encode(texts)
        if invert:
            if strength is not None:
                raise UserError(f"strength {strength:g} adds noise, and DDIM inversion adds none: give one of them")
            if self.is_student:
                raise UserError("DDIM inversion fails for a distilled student: use its teacher, or leave it out")
            return self.decode(ddim_inversion_path(self.generator, ends[:1], ends[1:], n), decoding, seed)
        arc = slerp(ends[:1], ends[1:], n)
        arc = Latents(self.generator.space.project(arc.x0), arc.mask)
        strength = 0.5 if strength is None else strength
        return self.decode(sdedit(self.generator, arc, strength, seed, shared_noise=True), decoding, seed)

    def trajectory(
        self,
        n: int = 3,
        *,
        snapshots: int = 20,
        seed: int = 42,
        decoding: str = "greedy",
        class_id: int | str | Sequence[int | str] | None = None,
        guidance: float | None = None,
    ) -> list[Snapshot]:
        """Decoded intermediate estimates of n texts; the last snapshot equals sample() with the same arguments."""
        n, snapshots = check_count(n, "n"), check_count(snapshots, "snapshots")
        pipeline = copy(self)
        pipeline.generator = copy(self.generator)
        trajectory = pipeline.generator.with_trajectory(texts=n, snapshots=snapshots)
        pipeline.sample(n, seed=seed, decoding=decoding, class_id=class_id, guidance=guidance)
        return trajectory.snapshots

    # ---- latents ---------------------------------------------------------------------------------------------------

    def encode(self, texts: Sequence[str]) -> Latents:
        """Clean, normalized latents (n, L, D) of texts. UserError as check_texts of sampling.arguments."""
        return self._encode(self._check_texts(texts))

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> Latents:
        batch = make_batch(self.generator.space.space, texts, self.generator.max_length).to(self.generator.device)
        return self.generator.space.encode(batch)

    def decode(self, latents: Latents, decoding: str | None = None, seed: int = 42) -> list[str]:
        """Texts of latents. decoding: None for that of from_pretrained or its preset, else greedy."""
        seed, strategy = check_seed(seed), self._strategy(decoding, "greedy")
        if not isinstance(latents, Latents):
            raise UserError(f"latents are {shown(latents)}: give what encode returns")
        return self.generator.decode(latents, strategy, seed)

    # ---- checks ----------------------------------------------------------------------------------------------------

    def _check_texts(self, texts: Sequence[str]) -> list[str]:
        """Texts for the latent space: see check_texts."""
        length = self.generator.max_length
        return check_texts(texts, tokenizer=tokenizer_of(self.generator.space.space), limit=(length, length))

    def _check_no_sources(self, method: str) -> None:
        if self.sources is not None:
            raise UserError(f"this run generates from sources, and {method} takes none: use candidates")

    def _conditions(self, class_id: Any, n: int) -> ConditionFn | None:
        """Conditions of n texts for a class, or one class for each. UserError if the run has no such class."""
        if class_id is None:
            if not self.has_null_class:
                raise UserError("this run was trained without a null class: give class_id")
            return None
        scalar = isinstance(class_id, str | bytes | dict | set) or getattr(class_id, "ndim", None) == 0  # of NumPy
        if scalar or not hasattr(class_id, "__len__"):
            return one_class(self._class_index(class_id))
        wanted = list(class_id)
        if len(wanted) != n:
            raise UserError(f"{len(wanted)} classes for {n} texts: give one class, or one for each text")
        return per_text_classes([self._class_index(c) for c in wanted])

    def _with_guidance(self, weight: float | None, conditional: bool) -> TextGenerator:
        """The generator, or a copy with another guidance weight. UserError if the run cannot be guided."""
        if weight is None:
            return self.generator
        weight = check_number(weight, "guidance")
        if weight != 1 and not conditional:
            raise UserError(f"guidance {weight:g} needs a class: give class_id too, or leave guidance out")
        if weight != 1 and self.distilled_guidance != 1:
            raise UserError(
                f"guidance {weight:g}: this student was distilled with a guidance of {self.distilled_guidance:g}, "
                "which is in its weights: leave guidance out"
            )
        if weight != 1 and not self.has_null_class:
            raise UserError(f"guidance {weight:g} needs a run that was trained with a null class: leave guidance out")
        generator = copy(self.generator)
        generator.guidance = weight
        return generator

    def _strategy(self, decoding: str | None, default: str) -> str:
        if decoding is not None and not isinstance(decoding, str):
            raise UserError(f"decoding is {shown(decoding)}: give one of {', '.join(DECODING)}")
        return one_strategy(decoding or self.decoding or default)

    def _class_index(self, wanted: int | str) -> int:
        try:
            canonical_label(wanted)
            return class_index(wanted.item() if hasattr(wanted, "item") else wanted, self.class_names)  # of NumPy
        except UserError:
            raise
        except ValueError as error:
            known = ", ".join(self.class_names) or "none, since this run was trained without classes"
            raise UserError(f"class_id is {shown(wanted)}, and {error}: give one of {known}") from None
