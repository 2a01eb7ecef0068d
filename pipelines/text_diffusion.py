"""A trained run, or a saved pipeline, as a Python object. docs/python.md shows every use by task.

from pipelines.text_diffusion import TextDiffusionPipeline

pipe = TextDiffusionPipeline.from_pretrained("runs/quickstart/diffusion")   # a run, a saved pipeline, or a hub id
pipe(num_samples=8, num_inference_steps=50, generator=1).texts                # eight texts; .latents: their latents
pipe(num_samples=8, class_id="sports", guidance_scale=2.0)                    # class-conditional run
pipe(source=["Where is it?"], num_samples=5)                                  # run on pairs: five texts for each source
pipe.sampler = "dpmpp"                                                        # another sampler, by name
pipe.save_pretrained("my-model"); pipe.push_to_hub("me/my-model")             # a complete folder, with a model card
pipe.generate_from_sources(["Where is it?"], candidates=5)                    # the best of five texts for each source
pipe.infill(["The ___ apple is ___."], 5)                                     # five ways to fill the blanks
pipe.variations(["One text."], 3, strength=0.7)                               # three texts like it
pipe.interpolate("One text.", "Another.", 5)                                  # five texts from one to the other
pipe.edit(["A man runs."], add="A woman.", remove="A man.")                   # latent arithmetic
pipe.variations(["Here."], 3, source="Where is it?")                          # run on pairs: also the others
pipe.trajectory(3)                                                            # three texts on their way from noise
latents = pipe.encode(["One text.", "Another."])                              # texts to latents
pipe.decode(latents)                                                          # latents to texts
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from evaluation import mbr
from pipelines.pretrained.checked_pipeline import CheckedPipeline, OnRows
from pipelines.sampling.arguments import check_count, check_number, check_texts
from pipelines.sampling.call_arguments import (
    DEFAULT_SEED,
    find_classes,
    one_of,
    output_type_of,
    seed_argument,
    seed_of,
    strategy_of,
)
from pipelines.sampling.classes import one_class
from pipelines.sampling.draw import Request, draw
from pipelines.sampling.infilling import infill
from pipelines.sampling.inputs import ContextSources, PackedSources
from pipelines.sampling.inversion import invert
from pipelines.sampling.outputs import TextPipelineOutput
from pipelines.sampling.sdedit import ddim_inversion_path, move, sdedit, slerp, without_padding
from pipelines.sampling.step_callback import StepCallback, StepEndCallback
from pipelines.sampling.trajectory import Snapshot
from utils.cli.flags import shown
from utils.errors import UserError
from utils.records import Latents

Seed = int | torch.Generator
ClassId = int | str | Sequence[int | str]


class TextDiffusionPipeline(CheckedPipeline):
    """Samples texts, and maps texts to latents and back, with the averaged weights of a run."""

    # ---- texts -----------------------------------------------------------------------------------------------------

    def __call__(
        self,
        num_samples: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        *,
        class_id: ClassId | None = None,
        source: str | Sequence[str] | None = None,
        generator: Seed | None = None,
        latents: Latents | None = None,
        decoding: str | None = None,
        output_type: str = "text",
        callback_on_step_end: StepEndCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        seed: Seed | None = None,
        guidance: float | None = None,
    ) -> TextPipelineOutput:
        """Sample texts: the same for the same seed, however many are asked for.

        num_samples: number of texts (None: 8), or of texts for each source (None: 1), one source after the other.
        num_inference_steps, guidance_scale: None: those of from_pretrained; a scale of 1 means unguided.
        class_id: a class by number or name, or one for each text, and then an empty text is not replaced; None: no
        class. source: one text or several, for a
        run on pairs. generator: a torch.Generator, which draws the seed of the call, or the seed; None: 42.
        latents: noise (n, L, D) to start from, such as invert returns, instead of drawing it. decoding: beam, nucleus
        or greedy; None: that of from_pretrained or its preset, else beam. output_type: "latent" decodes no texts.

        callback_on_step_end: called after each step of each batch with (pipeline, step from 0, time at which the step
        began, callback_kwargs), which holds the tensors that callback_on_step_end_tensor_inputs names, of
        step_callback.TENSOR_INPUTS. Latents (B, L, D) that it returns, in a dictionary under "latents", replace those
        of the step. If it sets pipeline._interrupt, the call ends: the texts of the batch are those of the present
        estimates, and batches that did not start have none.

        seed and guidance: the names of generator and guidance_scale in the other methods. UserError for an argument
        that cannot be used.
        """
        self._interrupt = False
        output_type, number = output_type_of(output_type), seed_of(*seed_argument(generator, seed))
        sources = None if source is None else self._check_sources([source] if isinstance(source, str) else source)
        n, k = self._sizes(num_samples, sources, latents)
        classes = find_classes(class_id, n, self.class_names, self.has_null_class)
        name, scale = one_of({"guidance_scale": guidance_scale, "guidance": guidance})
        sampler = self._with_guidance(scale, classes is not None, sources is not None, name)
        sampler = self._with_steps(sampler, num_inference_steps)
        strategy = strategy_of(decoding, self.decoding or "beam") if output_type == "text" else None
        if callback_on_step_end is not None:
            callback = StepCallback(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
            sampler.hooks = (*sampler.hooks, callback)
        output = draw(sampler, Request(n, k, number, strategy, classes, sources, latents), self.sources)
        self.generator.timer = sampler.timer
        return output

    def sample(
        self,
        n: int = 8,
        *,
        seed: Seed = DEFAULT_SEED,
        decoding: str | None = None,
        class_id: ClassId | None = None,
        guidance: float | None = None,
    ) -> list[str]:
        """n texts as a list; see __call__."""
        n, seed, strategy = check_count(n, "n"), seed_of(seed), strategy_of(decoding, self.decoding or "beam")
        classes = find_classes(class_id, n, self.class_names, self.has_null_class)
        if isinstance(classes, list):
            return list(self(n, seed=seed, decoding=strategy, class_id=class_id, guidance=guidance).texts)
        conditions = None if classes is None else one_class(classes)
        generator = self._with_guidance(guidance, conditions is not None)
        return generator.sample(n, seed, (strategy,), conditions, quiet=True).texts[strategy]

    def generate_from_sources(
        self,
        sources: Sequence[str],
        *,
        candidates: int = 1,
        utility: str = "rouge2",
        seed: Seed = DEFAULT_SEED,
        decoding: str | None = None,
        class_id: int | str | None = None,
        guidance: float | None = None,
    ) -> list[str]:
        """A text for each source: the candidate with the highest mean `utility` against the other candidates."""
        self.check_utility(utility)
        candidates = check_count(candidates, "candidates")
        options = {"seed": seed, "decoding": decoding, "class_id": class_id, "guidance": guidance}
        rows = self.candidates(sources, candidates, **options)  # type: ignore[arg-type]
        return self.most_alike(rows, utility)

    def most_alike(self, rows: Sequence[Sequence[str]], utility: str = "rouge2") -> list[str]:
        """Of each row the candidate with the highest mean `utility` against the others. Its models are those of the
        flags bertscore_model and bleu_tokenizer of from_pretrained, else of the run."""
        options = self.run.settings.config.pairs
        return mbr.mbr_select(
            rows,
            utility,
            tokenizer=options.bleu_tokenizer or "13a",
            bertscore_model=options.bertscore_model or "",
            device=str(self.generator.device),
        )

    def check_utility(self, utility: str, name: str = "utility") -> None:
        """UserError for a likeness of candidates that there is not, or whose model is not named. name: of it."""
        if utility not in mbr.UTILITIES:
            raise UserError(f"{name} is {shown(utility)}: give one of {', '.join(mbr.UTILITIES)}")
        if utility == "bertscore" and self.run.settings.config.pairs.bertscore_model is None:
            raise UserError(f"{name} bertscore needs a model: name one with --bertscore_model")

    def candidates(
        self,
        sources: Sequence[str],
        k: int = 5,
        *,
        seed: Seed = DEFAULT_SEED,
        decoding: str | None = None,
        class_id: int | str | None = None,
        guidance: float | None = None,
    ) -> list[list[str]]:
        """k texts for each source. Each source is encoded once. guidance: None for that of from_pretrained."""
        k, seed, strategy = check_count(k, "k"), seed_of(seed), strategy_of(decoding, self.decoding or "beam")
        texts = self._check_sources(sources)
        assert self.sources is not None
        inputs = self.sources.make_inputs(texts, seed, self._class_rows(class_id, len(texts)))
        generator = self._with_guidance(guidance, class_id is not None, True)
        found = generator.candidates(len(texts), k, seed, (strategy,), inputs, quiet=True)[strategy]
        self.generator.timer = generator.timer
        return found

    def infill(
        self,
        texts: Sequence[str],
        k: int = 1,
        *,
        source: str | Sequence[str] | None = None,
        seed: Seed = DEFAULT_SEED,
        strength: float | None = None,
    ) -> list[list[str]]:
        """k versions of each text with its blanks filled: ___ is one token, [blank:3] are three.

        The given text stays as typed. source: of a run on pairs, the source of all texts or one for each. strength:
        time in (0, 1] to which the latents of the given text are noised; None: 0.5. Not for token embeddings, where
        given words are never noised. UserError for a text without blanks, or one that is too long.
        """
        k, seed, texts = check_count(k, "k"), seed_of(seed), check_texts(texts)
        of_texts = self._sources_of(texts, source, "infill")
        self._check_null_class("infill")
        if isinstance(self.sources, PackedSources) and of_texts is not None:
            return infill(self.generator, texts, k, seed, strength, packed=(self.sources, of_texts))
        if of_texts is None or self.sources is None:
            return infill(self.generator, texts, k, seed, strength)
        inputs = self.sources.make_inputs(of_texts, seed)(0, len(texts))
        return infill(self.generator, texts, k, seed, strength, inputs)

    def variations(
        self,
        texts: Sequence[str],
        k: int = 1,
        *,
        source: str | Sequence[str] | None = None,
        strength: float = 0.7,
        seed: Seed = DEFAULT_SEED,
        decoding: str | None = None,
        class_id: int | str | None = None,
        guidance: float | None = None,
        on_rows: OnRows | None = None,
    ) -> list[list[str]]:
        """k variations of each text: noised to time `strength` and denoised again (SDEdit), with class_id if given.

        strength: in (0, 1]; a larger value preserves less of the text. source: of a run on pairs, the source of all
        texts or one for each; the variations are other texts of these sources. on_rows: called with the rows of some
        texts, k each, as soon as they are done. Of many texts, those that do not fit one block of random numbers with k
        each get further seeds: they depend on seed, on k and on their place, and not on the batch size.
        """
        k, seed, strength = check_count(k, "k"), seed_of(seed), check_number(strength, "strength")
        given, strategy = self._given(texts, source, class_id, "variations"), self._strategy(decoding)
        generator = self._with_guidance(guidance, class_id is not None, source is not None)
        return self._rewrite(generator, given, k, strength, seed, strategy, on_rows=on_rows)

    def interpolate(
        self,
        first: str,
        second: str,
        n: int = 5,
        *,
        source: str | None = None,
        strength: float | None = None,
        invert: bool = False,
        seed: Seed = DEFAULT_SEED,
        decoding: str | None = None,
    ) -> list[str]:
        """n texts from one to another: points on the arc between their latents, noised and denoised again.

        source: of a run on pairs, the source that both texts have, which conditions all points. strength: time in
        (0, 1] to which all points are noised, with the same noise; None: 0.5. The larger, the more fluent the texts;
        the smaller, the closer the ends stay to the two texts. invert: take the arc between the noises that DDIM
        inversion finds for the two texts instead; the ends are then reconstructions of them, and nothing is drawn. Not
        for distilled students.
        Source: Ho et al. 2020, arXiv:2006.11239, section 4.3; with invert, Song et al. 2021, arXiv:2010.02502, section
        5.3. UserError for two texts that differ in their number of latents.
        """
        n, seed = check_count(n, "n", at_least=2), seed_of(seed)
        strength = None if strength is None else check_number(strength, "strength")
        self._check_null_class("interpolate")
        ends, inputs = self._start(self._given([first, second], source, None, "interpolate"))
        self._check_equal_lengths([ends], "interpolated")
        ends, shared = without_padding(ends), inputs[:1]
        if invert:
            if strength is not None:
                raise UserError(f"strength {strength:g} adds noise, and DDIM inversion adds none: give one of them")
            self._check_no_student()
            return self.decode(ddim_inversion_path(self.generator, ends[:1], ends[1:], n, shared), decoding, seed)
        arc = slerp(ends[:1], ends[1:], n, shared.known)
        arc = Latents(self.generator.space.project(arc.x0), arc.mask)
        strength = 0.5 if strength is None else strength
        rows = shared.repeat(n)
        return self.decode(sdedit(self.generator, arc, strength, seed, rows, shared_noise=True), decoding, seed)

    def edit(
        self,
        texts: Sequence[str],
        k: int = 1,
        *,
        add: str | Sequence[str],
        remove: str | Sequence[str],
        weight: float = 1.0,
        source: str | Sequence[str] | None = None,
        strength: float = 0.3,
        seed: Seed = DEFAULT_SEED,
        decoding: str | None = None,
        class_id: int | str | None = None,
        guidance: float | None = None,
        on_rows: OnRows | None = None,
    ) -> list[list[str]]:
        """k edited versions of each text: latents + weight (mean latents of `add` - mean latents of `remove`).

        add, remove: texts that differ in what is to change, one each or several, whose means hold it more purely. The
        moved latents, as long as before, are noised to time `strength` and denoised again, as by variations; the
        smaller, the more of the text is kept. on_rows: as there. UserError where texts, `add` and `remove` differ in
        their number of latents, and for packed sources.
        """
        k, seed, strength = check_count(k, "k"), seed_of(seed), check_number(strength, "strength")
        weight = check_number(weight, "weight")
        if isinstance(self.sources, PackedSources):
            raise UserError("texts of this run's space follow their sources and cannot be subtracted: use variations")
        more, less = (self._check_texts([given] if isinstance(given, str) else given) for given in (add, remove))
        given, strategy = self._given(texts, source, class_id, "edit"), self._strategy(decoding)
        added, removed = self._encode(more), self._encode(less)
        # of all texts, before the first is written
        self._check_equal_lengths([self._encode(given.texts), added, removed], "subtracted")
        direction = weight * (without_padding(added).x0.mean(0) - without_padding(removed).x0.mean(0))

        def moved(clean: Latents) -> Latents:
            found = move(without_padding(clean), direction)
            return Latents(self.generator.space.project(found.x0), found.mask)

        generator = self._with_guidance(guidance, class_id is not None, source is not None)
        return self._rewrite(generator, given, k, strength, seed, strategy, moved, on_rows)

    def trajectory(
        self,
        n: int = 3,
        *,
        snapshots: int = 20,
        seed: Seed = DEFAULT_SEED,
        decoding: str = "greedy",
        class_id: ClassId | None = None,
        guidance: float | None = None,
        source: str | None = None,
    ) -> list[Snapshot]:
        """Decoded intermediate estimates of n texts; the last snapshot equals sample() with the same arguments.

        source: of a run on pairs, the source of all n texts.
        """
        n, snapshots = check_count(n, "n"), check_count(snapshots, "snapshots")
        pipeline = copy(self)
        pipeline.generator = copy(self.generator)
        trajectory = pipeline.generator.with_trajectory(texts=n, snapshots=snapshots)
        if source is None:
            pipeline.sample(n, seed=seed, decoding=decoding, class_id=class_id, guidance=guidance)
        else:
            pipeline(n, source=source, seed=seed, decoding=decoding, class_id=class_id, guidance=guidance)
        return trajectory.snapshots

    # ---- latents ---------------------------------------------------------------------------------------------------

    def encode(self, texts: Sequence[str]) -> Latents:
        """Clean, normalized latents (n, L, D) of texts. UserError as check_texts of sampling.arguments."""
        return self._encode(self._check_texts(texts))

    def decode(
        self,
        latents: Latents,
        decoding: str | None = None,
        seed: Seed = DEFAULT_SEED,
        *,
        source: str | Sequence[str] | None = None,
    ) -> list[str]:
        """Texts of latents. decoding: None for that of from_pretrained or its preset, else greedy.

        source: of a decoder that reads sources (--source_prompt), that of all texts or one for each. Latents that were
        sampled from sources have them.
        """
        seed, strategy = seed_of(seed), self._strategy(decoding)
        if not isinstance(latents, Latents):
            raise UserError(f"latents are {shown(latents)}: give what encode returns")
        if source is not None:
            latents = replace(latents, prompt=self._prompts(source, len(latents)))
        return self._decode(latents, strategy, seed)

    def _strategy(self, decoding: str | None) -> str:
        """The decoding strategy of latents that were not sampled from noise."""
        return strategy_of(decoding, self.decoding or "greedy")

    def _prompts(self, source: str | Sequence[str], n: int) -> Tensor:
        """What the decoder reads of the sources of n texts, (n, P) on the device."""
        read = self.sources.prompts if isinstance(self.sources, ContextSources) else None
        if read is None:
            raise UserError("the decoder of this run reads no sources, only latents: leave source out")
        given = self._check_sources([source] * n if isinstance(source, str) else source)
        if len(given) != n:
            raise UserError(f"{len(given)} sources for {n} latents: give one for all, or one for each")
        return read(given).to(self.generator.device)

    def invert(self, texts: Sequence[str]) -> Latents:
        """The noise (n, L, D) of texts by DDIM inversion: with the sampler ddim, pipe(latents=noise) leads back to
        them, up to the error of the inversion, which more sampling steps reduce.

        Not for distilled students, runs with sources, control, rounding or an absorbing state.
        """
        self._check_no_sources("invert")
        self._check_no_student()
        self._check_null_class("invert")
        return invert(self.generator, self.encode(texts))
