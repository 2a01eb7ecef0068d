"""Loading and saving of a pipeline, its device and its sampler; pipelines.text_diffusion adds the work on texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch

from pipelines.builders.text_decoders import decoded_space_of
from pipelines.components import make_generator, make_sources
from pipelines.load_run import FlagValue, LoadedRun, load_run
from pipelines.pretrained.load import find_folder
from pipelines.pretrained.reconfigure import with_flags
from pipelines.sampling.call_arguments import sampler_of
from pipelines.sampling.hooks import ClassifierControl
from utils import distributed
from utils.cli.flags import shown
from utils.errors import UserError
from utils.precision import resolve_precision


class PretrainedPipeline:
    """The models of a run on a device, with their generator."""

    def __init__(self, run: LoadedRun) -> None:
        """run: what load_run returns; from_pretrained loads it, too."""
        self.run = run
        self._interrupt = False  # set by a callback, to end the call
        self._processes: dict[int, Any] = {}  # number of steps -> process
        self._build()

    def _build(self) -> None:
        run, config = self.run, self.run.settings.config
        autocast = distributed.autocast(run.device, config.loop.mixed_precision)
        self.generator = make_generator(run.settings, run.components, run.device, autocast, whole_blocks=False)
        self.sources = make_sources(run.settings, run.components, run.device, autocast)
        self.class_names, self.has_null_class = tuple(run.class_names), run.has_null_class
        self.is_student = config.distillation.distill_run is not None
        self.distilled_guidance = config.distillation.distill_guidance if self.is_student else 1.0
        given = {"decoding", "preset"} & run.settings.explicit
        self.decoding = config.evaluation.decoding if given else None  # of calls that name none
        if self.decoding is None and decoded_space_of(run.components.space) is not None:
            self.decoding = "nucleus"  # a causal decoder samples well, and needs no search

    # ---- loading and saving ----------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str = "auto",
        argv: Sequence[str] = (),
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **flags: FlagValue,
    ) -> Self:
        """Load a run folder, a folder that save_pretrained wrote, or a repository of the hub; no corpus is needed.

        folder: a path, or an id such as "owner/name". device: auto, cuda, mps or cpu. flags: flags that an evaluation
        may set, such as preset="fast" or sampling_timesteps=20. argv: flags in the form of a command line. The
        arguments from revision to local_files_only are those of huggingface_hub, for a repository.

        A saved folder and a repository are read only if every file is as it was saved, and no code of theirs is run.
        Raises UserError if there is no such folder or repository, if it is no denoiser's, damaged or of a newer
        release, or if training fixed a flag.
        """
        place = find_folder(
            folder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        return cls(load_run(place, device=device, argv=argv, **flags))

    def save_pretrained(
        self, folder: str | Path, *, license: str | None = None, language: str | None = None, push_to_hub: str = ""
    ) -> None:
        """Write a complete folder: weights, models, tokenizer, configuration, checksums, and a model card.

        It loads offline, on another machine, and gives the same texts. license, language: codes of the hub for the
        card, such as "mit" and "en". push_to_hub: a repository to which the folder is uploaded, too. UserError if the
        folder holds anything else than an earlier saved pipeline, which is replaced.
        """
        from pipelines.pretrained.card import CardOptions
        from pipelines.pretrained.save import save_pipeline
        from pipelines.pretrained.upload import check_repository, upload

        if not isinstance(folder, str | Path) or not str(folder).strip():
            raise UserError(f"folder is {shown(folder)}: give the path of a new folder")
        options = CardOptions(check_repository(push_to_hub) if push_to_hub else "", license, language)
        save_pipeline(self.run, Path(folder).expanduser(), options)
        if push_to_hub:
            upload(Path(folder).expanduser(), push_to_hub)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload a text diffusion pipeline",
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        license: str | None = None,
        language: str | None = None,
    ) -> str:
        """Save the pipeline to a temporary folder, and upload it to a repository, which is made if need be.

        repo_id: such as "owner/name". private: whether a new repository is private. token: None for that of `hf auth
        login`. revision: a branch; None: main. license, language: see save_pretrained. Returns the address of the
        commit. UserError if the hub is not reached or refuses.
        """
        from pipelines.pretrained.upload import push

        return push(
            self.run,
            repo_id,
            license=license,
            language=language,
            private=private,
            token=token,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )

    def to(self, device: str | torch.device) -> Self:
        """Move all models to a device, and return the pipeline. UserError for a device that is not there."""
        run, target = self.run, distributed.pick_device(str(device))
        run.components.model.to(target)
        run.components.space.to(target)
        if run.components.context is not None:
            run.components.context.states.to(target)
        resolve_precision(run.settings, target)
        run.device, hooks = target, self.generator.hooks
        for hook in hooks:
            if isinstance(hook, ClassifierControl):
                hook.classifier.to(target)
        self._build()
        self.generator.hooks = hooks
        return self

    @property
    def device(self) -> torch.device:
        return self.generator.device

    @property
    def sampler(self) -> str:
        """The name of the sampler: ddpm, ddim, dpmpp, dpmpp_sde or heun. It may be set, also by diffusers' names."""
        return self.run.settings.config.sampling.sampler

    @sampler.setter
    def sampler(self, name: str) -> None:
        name = sampler_of(name)
        try:
            self.run.settings, process = with_flags(self.run.settings, sampler=name)
        except UserError as error:
            raise UserError(str(error).replace("--sampler", f"sampler {name}")) from error
        self.run.components.process = self.generator.process = process
        self.generator.steps = self.run.settings.config.sampling.sampling_timesteps
        self._processes.clear()

    @property
    def interrupt(self) -> bool:
        """Whether a callback ended the last call."""
        return self._interrupt
