"""What training changes: in memory, and as the tensors and facts of a checkpoint. Knows no data and no loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from utils import checkpoints
from utils.distributed import Ranks
from utils.ema import EMA
from utils.errors import UserError
from utils.optim import LrSchedule
from utils.sharding import collected, is_sharded, spread


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass
class State:
    """What training changes. A checkpoint holds all of it."""

    modules: nn.Module  # all that trains: a module, or a ModuleDict of several
    optimizer: torch.optim.Optimizer
    schedule: LrSchedule
    ema: EMA | None = None
    step: int = 0  # optimizer steps done
    best: dict[str, Any] = field(default_factory=dict)  # of the hooks: best metrics so far, for JSON
    owed: list[str] = field(default_factory=list)  # deeds of this step that a signal kept the run from (hooks.Every)
    seed: int = 42
    ranks: Ranks = field(default_factory=Ranks)
    wrapped: nn.Module | None = None  # what the step function calls under several ranks (distributed.wrap); for no_sync
    scaler: torch.amp.GradScaler | None = None  # of fp16; made by train()
    scaler_state: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Stateful] = field(default_factory=dict)  # what else training changes, by file of a checkpoint

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.modules.parameters() if p.requires_grad]

    def tensors(self, *, optimizer: bool = True) -> dict[str, dict[str, Tensor]]:
        """Files of a checkpoint: model, ema (if there is one) and optimizer. Of sharded ones, on the main rank."""
        collect = partial(collected, keep=self.ranks.main)
        files = {"model": whole_weights(self.modules, collect)}
        if optimizer:
            files["optimizer"], _ = checkpoints.pack_optimizer(self.optimizer, collect)
        files |= {"ema": self.ema.state_dict()} if self.ema else {}
        return files | {name: part.state_dict() for name, part in self.more.items()}

    def facts(self, seen: Sequence[float] | None = None) -> dict[str, Any]:
        """seen: by the schedules of all ranks; unset: by this one."""
        return {
            "step": self.step,
            "best": self.best,
            "owed": self.owed,
            "seed": self.seed,
            "optimizer": checkpoints.optimizer_facts(self.optimizer),
            "schedule": self.schedule.facts(seen),
            "ema_updates": self.ema.updates if self.ema else None,
            "scaler": self.scaler.state_dict() if self.scaler else self.scaler_state,
        }

    def save(self, folder: Path | str, *, keep: int = 2, **facts: Any) -> None:
        """A checkpoint by the main rank; facts of the caller join the state's own."""
        # of a run that has just been restored they are on the CPU still
        seen = self.schedule.seen(lambda mine: self.ranks.gather(mine.to(self.ranks.device)))
        if self.ranks.main or is_sharded(self.modules):  # then every rank gives its part
            files, held = self.tensors(), {**self.facts(seen), **facts}
            if self.ranks.main:
                checkpoints.save(folder, files, held, keep)
        self.ranks.barrier()

    def save_best(self, folder: Path | str, **facts: Any) -> None:
        """The weights and their average as the best so far; without the optimizer, nothing trains on from there."""
        if self.ranks.main or is_sharded(self.modules):
            files = {name: x for name, x in self.tensors(optimizer=False).items() if name in ("model", "ema")}
            if self.ranks.main:
                checkpoints.save_best(folder, files, {"step": self.step, "best": self.best, **facts})
        self.ranks.barrier()

    def load_weights(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Weights and average only: for evaluation, or to start another run from them."""
        load_weights(self.modules, checkpoint)
        if self.ema and "ema" in checkpoint.tensors:
            try:
                self.ema.load_state_dict(checkpoint.tensors["ema"], checkpoint.facts.get("ema_updates"))
            except ValueError as error:
                raise UserError(f"{checkpoint.path}: {error}") from None

    def restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Everything, to train on as if there had been no stop."""
        facts = checkpoint.facts
        if self.ema and "ema" not in checkpoint.tensors:
            raise UserError(f"{checkpoint.path} holds no averaged weights: it cannot be resumed, only evaluated")
        if "optimizer" not in checkpoint.tensors:
            raise UserError(
                f"{checkpoint.path} holds no state of the optimizer (a converted run): evaluate it, or start another "
                "run from its weights with --init_path"
            )
        self.load_weights(checkpoint)
        checkpoints.unpack_optimizer(self.optimizer, checkpoint.tensors["optimizer"], facts["optimizer"])
        self.schedule.restore(facts["schedule"], self.ranks.rank, self.ranks.world)
        self.step, self.best, self.seed = facts["step"], dict(facts["best"]), facts["seed"]
        self.owed = list(facts.get("owed", ()))  # older checkpoints owe nothing
        self.scaler_state = dict(facts["scaler"])
        if self.scaler and self.scaler_state:
            self.scaler.load_state_dict(self.scaler_state)
        for name, part in self.more.items():
            if name not in checkpoint.tensors:
                raise UserError(f"{checkpoint.path} lacks {name}.safetensors: it is of a run with other flags")
            part.load_state_dict(checkpoint.tensors[name])


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and saved buffers by name. What is frozen is someone else's to keep, unless module.keeps."""
    if getattr(module, "keeps_frozen", False):
        return module.state_dict()
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: x for name, x in module.state_dict().items() if name not in frozen}


def whole_weights(module: nn.Module, collect: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Its weights, each made whole by collect; tied ones once, which pieces of them would not show."""
    owners = {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)}
    found: dict[Any, Tensor] = {}
    named = {}
    for name, x in weights(module).items():
        owner = owners.get(name, name)
        if owner not in found:
            found[owner] = collect(x)
        named[name] = found[owner]
    return named


@torch.no_grad()
def load_weights(module: nn.Module, checkpoint: checkpoints.Checkpoint, *, averaged: bool = False) -> None:
    """Put a checkpoint's weights into a module; averaged: the averaged ones where there are some, for evaluation."""
    own, found = weights(module), dict(checkpoint.tensors["model"])
    if averaged:
        averages = checkpoint.tensors.get("ema", {})
        places = {own[name].data_ptr(): x for name, x in averages.items() if name in own}
        # A tied parameter has an average under one of its names only, and every name must get it.
        found |= {name: places[x.data_ptr()] for name, x in own.items() if x.numel() and x.data_ptr() in places}
    different = sorted(own.keys() ^ found.keys())
    if different:
        where = "lacks" if different[0] in own else "holds, and this model has not,"
        raise UserError(
            f"{checkpoint.path} {where} {different[0]}: another model's; check the flags against its args.json"
        )
    for name, x in own.items():
        if x.shape != found[name].shape:
            raise UserError(
                f"{checkpoint.path}: {name} has shape {tuple(found[name].shape)}, this run wants {tuple(x.shape)}: "
                f"check the flags against its args.json"
            )
    for name, x in own.items():  # only now, so that a refused checkpoint changes nothing
        x.copy_(spread(found[name], x))
