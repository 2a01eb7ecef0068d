"""Training state: in memory, and as the tensors and metadata of a checkpoint. Independent of data and loop.

It replaces Accelerator.save_state, which has no data position, pickles, and writes one file per rank: a resumed run
must equal an uninterrupted one bit for bit, on any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from utils import checkpoints
from utils.distributed import DistContext
from utils.ema import EMA
from utils.errors import UserError, one_line_text
from utils.heartbeat import beating
from utils.locks import was_removed
from utils.optim import LrSchedule
from utils.sharding import gather_to_cpu, is_sharded, shard_like


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass
class State:
    """Everything that training changes. A checkpoint holds all of it.

    What a kill must not lose is entered in `pending` before the checkpoint that precedes it, and removed when it is
    done, so that a resumed run knows from its checkpoint that it is due.
    """

    model: nn.Module  # all that trains: a module, or a ModuleDict of several
    optimizer: torch.optim.Optimizer
    schedule: LrSchedule
    ema: EMA | None = None
    more_emas: dict[str, EMA] = field(default_factory=dict)  # averages of other decays, by their decays as text
    ema_chosen: str | None = None  # the one of more_emas that validation prefers to `ema`
    step: int = 0  # optimizer steps done
    best: dict[str, Any] = field(default_factory=dict)  # best metrics so far, written by hooks, for JSON
    pending: list[str] = field(default_factory=list)  # names of hooks that are due; run on resume
    seed: int = 42
    dist: DistContext = field(default_factory=DistContext)
    wrapped: nn.Module | None = None  # the model in DDP (distributed.wrap), which the step function calls
    scaler: torch.amp.GradScaler | None = None  # loss scaler for fp16; made by train()
    scaler_state: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Stateful] = field(default_factory=dict)  # further state, by file name of the checkpoint
    ended_by: str | None = None  # a key of preemption.EXIT_CODES, set by a hook: training ends after this step

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def emas(self) -> dict[str | None, EMA]:
        """All averages: `ema` as None, and those of more_emas."""
        found: dict[str | None, EMA] = {} if self.ema is None else {None: self.ema}
        found.update(self.more_emas)
        return found

    @property
    def best_ema(self) -> EMA:
        """The average that validation prefers; `ema` where there are no others, or no validation yet."""
        found = self.emas.get(self.ema_chosen)
        assert found is not None, "this run keeps no averaged weights"
        return found

    def tensors(self, *, optimizer: bool = True) -> dict[str, dict[str, Tensor]]:
        """Files of a checkpoint: model, ema (if any), optimizer, extra. Sharded tensors are gathered on rank 0 only."""
        collect = partial(gather_to_cpu, keep=self.dist.is_main)
        files = {"model": gathered_state(self.model, collect)}
        if optimizer:
            files["optimizer"], _ = checkpoints.pack_optimizer(self.optimizer, collect)
        files |= {ema_part(name): ema.state_dict() for name, ema in self.emas.items()}
        return files | {name: part.state_dict() for name, part in self.extra.items()}

    def metadata(self, seen: Sequence[float] | None = None) -> dict[str, Any]:
        """Metadata of a checkpoint, for JSON. seen: LrSchedule.seen() of all ranks; None: only that of this rank."""
        return {
            "step": self.step,
            "best": self.best,
            "pending": self.pending,
            "seed": self.seed,
            "optimizer": checkpoints.optimizer_metadata(self.optimizer),
            "schedule": self.schedule.metadata(seen),
            "ema_updates": self.ema.updates if self.ema else None,
            **({"ema_chosen": self.ema_chosen} if self.more_emas else {}),
            "scaler": self.scaler.state_dict() if self.scaler else self.scaler_state,
            **({"ended_by": self.ended_by} if self.ended_by else {}),
        }

    def save(self, folder: Path | str, *, keep: int = 2, **metadata: Any) -> None:
        """Write a checkpoint, on rank 0. metadata: entries that are added to those of the state.

        Raises UserError, and keeps the earlier checkpoints, if weights are not finite, the disk is full, or the run
        folder was removed.
        """
        # in a run that has just been restored they are still on the CPU
        seen = self.schedule.seen(lambda mine: self.dist.gather(mine.to(self.dist.device)))
        if self.dist.is_main or is_sharded(self.model):  # sharded: gathered from every rank
            files, held = self.tensors(), {**self.metadata(seen), **metadata}
            if self.dist.is_main:
                _check_present(folder)
                with beating():
                    checkpoints.save(folder, files, held, keep)
        self.dist.barrier()

    def save_best(self, folder: Path | str, **metadata: Any) -> None:
        """Write weights and averaged weights as the best so far; without the optimizer, so it cannot be resumed.

        Of several averages it holds the one that validation prefers.
        """
        if self.dist.is_main or is_sharded(self.model):
            files = {name: x for name, x in self.tensors(optimizer=False).items() if name in ("model", "ema")}
            if self.more_emas:
                files["ema"] = self.best_ema.state_dict()
                metadata = {"ema_decay": self.best_ema.decay, **metadata}
            if self.dist.is_main:
                _check_present(folder)
                with beating():
                    checkpoints.save_best(folder, files, {"step": self.step, "best": self.best, **metadata})
        self.dist.barrier()

    def load_weights(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Load weights and averaged weights only: for evaluation, or to start another run from them."""
        load_weights(self.model, checkpoint)
        self._load_averages(checkpoint)

    def _load_averages(self, checkpoint: checkpoints.Checkpoint) -> None:
        updates = checkpoint.metadata.get("ema_updates")
        for name, ema in self.emas.items():
            if ema_part(name) in checkpoint.tensors:
                try:
                    ema.load_state_dict(checkpoint.tensors[ema_part(name)], updates)
                except ValueError as error:
                    raise UserError(f"{checkpoint.path}: {error}") from None

    def restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Load everything, so that training continues as if it had not stopped."""
        if any(ema_part(name) not in checkpoint.tensors for name in self.emas):
            raise UserError(f"{checkpoint.path} holds no averaged weights: it cannot be resumed, only evaluated")
        if "optimizer" not in checkpoint.tensors:
            raise UserError(
                f"{checkpoint.path} holds no state of the optimizer (a converted run): evaluate it, or start another "
                "run from its weights with --init_path"
            )
        self.load_weights(checkpoint)
        try:
            self._restore_metadata(checkpoint)
        except (KeyError, TypeError, AttributeError, IndexError) as error:  # only where state.json has no checksum
            raise UserError(
                f"{checkpoint.path}/state.json does not hold what a training saves ({one_line_text(repr(error))}): "
                "move this folder elsewhere, and the checkpoint before it is resumed"
            ) from None
        for name, part in self.extra.items():
            if name not in checkpoint.tensors:
                raise UserError(
                    f"{checkpoint.path} lacks {name}.safetensors: it was written with other flags; resume with those "
                    "of its args.json"
                )
            part.load_state_dict(checkpoint.tensors[name])

    def take_optimizer(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Load averaged weights and the moments of the optimizer, for a run that starts from another's checkpoint.

        The settings of the optimizer and the learning rate stay those of this run. Raises UserError, and changes
        nothing, if the checkpoint has none, or of another optimizer or model.
        """
        if "optimizer" not in checkpoint.tensors:
            raise UserError(
                f"{checkpoint.path} holds no state of the optimizer (a best checkpoint or a converted run): leave "
                "--init_optimizer out"
            )
        own = {name for name, ema in self.emas.items() if ema_part(name) in checkpoint.tensors}
        checkpoints.unpack_optimizer(
            self.optimizer, checkpoint.tensors["optimizer"], checkpoint.metadata["optimizer"], keep_settings=True
        )
        self._load_averages(checkpoint)
        for name, ema in self.emas.items():  # a decay that the other run did not have starts from its average
            if name not in own and "ema" in checkpoint.tensors:
                ema.load_state_dict(checkpoint.tensors["ema"], checkpoint.metadata.get("ema_updates"))

    def _restore_metadata(self, checkpoint: checkpoints.Checkpoint) -> None:
        metadata = checkpoint.metadata
        checkpoints.unpack_optimizer(self.optimizer, checkpoint.tensors["optimizer"], metadata["optimizer"])
        self.schedule.restore(metadata["schedule"], self.dist.rank, self.dist.world_size)
        self.step, self.best, self.seed = metadata["step"], dict(metadata["best"]), metadata["seed"]
        self.pending = list(metadata.get("pending", ()))
        self.ema_chosen = metadata.get("ema_chosen")
        self.scaler_state = dict(metadata["scaler"])
        if self.scaler and self.scaler_state:
            self.scaler.load_state_dict(self.scaler_state)


def ema_part(name: str | None) -> str:
    """The file name in a checkpoint of an average of State.emas."""
    return "ema" if name is None else f"ema_{name}"


def chosen_ema(checkpoint: checkpoints.Checkpoint) -> str:
    """The file name of the averaged weights of a checkpoint that validation preferred."""
    part = ema_part(checkpoint.metadata.get("ema_chosen"))
    return part if part in checkpoint.tensors else "ema"  # best/ holds that one alone


def _check_present(folder: Path | str) -> None:
    """UserError if the run folder was removed since the training began: a new one would lack all that loads the run."""
    if was_removed(Path(folder)):
        raise UserError(
            f"{folder} was removed or renamed while it was trained into, and this step is not saved: resume it under "
            "its new name, or train again"
        )


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and saved buffers by name; with module.save_frozen, frozen parameters too.

    Frozen ones are saved elsewhere: in the folder of the language model or autoencoder that they come from.
    """
    if getattr(module, "save_frozen", False):
        return module.state_dict()
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: x for name, x in module.state_dict().items() if name not in frozen}


def gathered_state(module: nn.Module, collect: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """trainable_state(module), gathered by collect. Tied parameters are gathered once: shards do not show the tie."""
    owners = {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)}
    found: dict[Any, Tensor] = {}
    named = {}
    for name, x in trainable_state(module).items():
        owner = owners.get(name, name)
        if owner not in found:
            found[owner] = collect(x)
        named[name] = found[owner]
    return named


@torch.no_grad()
def load_weights(module: nn.Module, checkpoint: checkpoints.Checkpoint, *, averaged: bool = False) -> None:
    """Load a checkpoint's weights into a module. averaged: the averaged weights instead, where it has them.

    Raises UserError, and changes nothing, where names or shapes differ.
    """
    own, found = trainable_state(module), dict(checkpoint.tensors["model"])
    if averaged:
        averages = checkpoint.tensors.get("ema", {})
        by_address = {own[name].data_ptr(): x for name, x in averages.items() if name in own}
        # A tied parameter has an average under one of its names only, and every name must get it.
        found |= {name: by_address[x.data_ptr()] for name, x in own.items() if x.numel() and x.data_ptr() in by_address}
    different = sorted(own.keys() ^ found.keys())
    if different:
        problem = "lacks" if different[0] in own else "has an unknown tensor"
        raise UserError(
            f"{checkpoint.path} {problem} {different[0]}: it is of another model; check the flags against its args.json"
        )
    for name, x in own.items():
        if x.shape != found[name].shape:
            raise UserError(
                f"{checkpoint.path}: {name} has shape {tuple(found[name].shape)}, this run has {tuple(x.shape)}: "
                f"check the flags against its args.json"
            )
    for name, x in own.items():  # after all checks, so that a refused checkpoint changes nothing
        x.copy_(shard_like(found[name], x))
