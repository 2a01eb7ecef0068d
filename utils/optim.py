"""Optimizers, learning-rate schedules and clipping, by the names of the flags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.muon import Muon, hidden_matrices
from utils.options import OptimizerOptions
from utils.sharding import total_norm

Named = Iterable[tuple[str, nn.Parameter]]


# ---------------------------------------------------------------------------------------------------------- optimizers


def decay_split(named: Named, matrices: Set[int] = frozenset()) -> list[dict[str, Any]]:
    """Parameter groups: weight decay for tensors with two or more dimensions, none for the rest (gains, biases).

    Holds trainable parameters only, tied ones once, with their names, which checkpoints use.
    matrices: ids of parameters that get a separate group, marked `muon`.
    """
    seen: set[int] = set()
    decayed: list[tuple[str, nn.Parameter]] = []
    plain: list[tuple[str, nn.Parameter]] = []
    hidden: list[tuple[str, nn.Parameter]] = []
    for name, p in named:
        if p.requires_grad and id(p) not in seen:
            seen.add(id(p))
            (hidden if id(p) in matrices else decayed if p.ndim >= 2 else plain).append((name, p))
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [g for g in (*groups, {"params": hidden, "muon": True}) if g["params"]]


def _kernels(groups: list[dict[str, Any]], options: OptimizerOptions) -> dict[str, Any]:
    """fused and foreach of AdamW: one kernel for all parameters; a loop over them with no_fused_optimizer."""
    devices = {p.device.type for group in groups for _, p in group["params"]}
    if options.no_fused_optimizer:
        return {"fused": False, "foreach": False}
    # no fused kernel on meta, where a dry run builds its parts
    return {"fused": devices <= {"cpu", "cuda", "mps"}, "foreach": False}


def _adamw(groups: list[dict[str, Any]], options: OptimizerOptions) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups,
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=1e-8,
        weight_decay=options.adam_weight_decay,
        **_kernels(groups, options),
    )


def _muon(groups: list[dict[str, Any]], options: OptimizerOptions) -> torch.optim.Optimizer:
    return Muon(
        groups,
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        momentum=options.muon_momentum,
        weight_decay=options.adam_weight_decay,
        **_kernels(groups, options),
    )


def _lion(groups: list[dict[str, Any]], options: OptimizerOptions) -> torch.optim.Optimizer:
    """Lion, Chen et al. 2023, arXiv:2302.06675, Algorithm 2; six kernels for all parameters, or for each of them."""
    if not options.learning_rate > 0:
        raise UserError(f"--optimizer lion needs --learning_rate above 0, not {options.learning_rate:g}")
    try:
        from lion_pytorch import Lion
        from lion_pytorch.foreach import Lion as ForeachLion
    except ImportError:
        raise UserError("--optimizer lion needs a package that is not installed: pip install lion-pytorch") from None
    return (Lion if options.no_fused_optimizer else ForeachLion)(
        groups,
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        weight_decay=options.adam_weight_decay,
    )


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimizerOptions], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "lion": _lion,
    "muon": _muon,
}


def make_optimizer(
    parameters: nn.Module | Iterable[nn.Module] | Named, options: OptimizerOptions
) -> torch.optim.Optimizer:
    """The optimizer of --optimizer for trainable parameters. parameters: module(s), or (name, parameter) pairs.

    Raises UserError if every parameter is frozen.
    """
    parts: list[Any] = [parameters] if isinstance(parameters, nn.Module) else list(parameters)
    matrices: set[int] = set()
    if options.optimizer == "muon":
        matrices = {i for part in parts if isinstance(part, nn.Module) for i in hidden_matrices(part)}
    groups = decay_split(_named(parameters if isinstance(parameters, nn.Module) else parts), matrices)
    if not groups:
        raise UserError("nothing is left to train: every parameter is frozen")
    return OPTIMIZERS[options.optimizer](groups, options)


def _named(parameters: nn.Module | Iterable[nn.Module] | Named) -> Iterable[tuple[str, nn.Parameter]]:
    if isinstance(parameters, nn.Module):
        yield from parameters.named_parameters()
        return
    for i, item in enumerate(parameters):
        if isinstance(item, nn.Module):
            yield from ((f"{i}.{name}", p) for name, p in item.named_parameters())
        else:
            yield item  # type: ignore[misc]


# ----------------------------------------------------------------------------------------------------------- schedules

# Arguments of a schedule beyond warm-up and length. n: training steps, warm: warm-up steps, lr: peak learning rate.
_EXTRA: dict[str, Callable[[int, int, float], dict[str, Any]]] = {
    "cosine_with_min_lr": lambda n, warm, lr: {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": lambda n, warm, lr: {"min_lr_rate": 0.1},
    "polynomial": lambda n, warm, lr: {"lr_end": min(1e-7, lr / 10)},  # it must lie below the peak
    "warmup_stable_decay": lambda n, warm, lr: {"num_decay_steps": max(1, min(n // 5, n - warm))},
    "greedy": lambda n, warm, lr: {"min_lr": lr / 100, "max_lr": 10 * lr},
}
_BY_LOSS = ("reduce_lr_on_plateau", "greedy")
_OBSERVATIONS = 200  # per run: how often a schedule that follows the loss gets its mean


class LrSchedule:
    """A learning-rate schedule of transformers, stepped once per optimizer step.

    reduce_lr_on_plateau and greedy follow the training loss. About 200 times per run they get its mean over the steps
    since the last time: single steps are too noisy, and reading each would make the host wait for the GPU. They have no
    warm-up.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, options: OptimizerOptions, num_steps: int):
        from transformers import get_scheduler

        name, n = options.lr_schedule, max(num_steps, 1)
        warm = options.lr_warmup_steps
        n += name == "polynomial" and n == warm  # it divides by their difference
        extra = _EXTRA.get(name, lambda n, warm, lr: {})(n, warm, options.learning_rate)
        try:
            self.inner: Any = get_scheduler(
                name, optimizer, num_warmup_steps=warm, num_training_steps=n, scheduler_specific_kwargs=extra
            )
        except ValueError as error:
            raise UserError(f"--lr_schedule {name}: {error}") from None
        self.optimizer = optimizer
        # steps after which the learning rate of warmup_stable_decay falls; None for other schedules
        self.decay_start: int | None = n - extra["num_decay_steps"] if "num_decay_steps" in extra else None
        self.by_loss = name in _BY_LOSS
        self.interval = max(1, n // _OBSERVATIONS)
        self._steps = 0
        self._losses: Tensor | None = None

    def step(self, loss: Tensor | None = None, average: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        """Advance the schedule by an optimizer step. loss: its mean loss, a scalar tensor. average: mean over ranks."""
        if not self.by_loss:
            self.inner.step()
            return
        assert loss is not None, "this schedule follows the loss"
        self._steps += 1
        self._losses = loss.detach() if self._losses is None else self._losses + loss.detach()
        if self._steps % self.interval == 0:
            self.inner.step(float(average(self._losses / self.interval)))
            self._losses = None

    @property
    def lr(self) -> float:
        """The learning rate that the next optimizer step uses."""
        return float(self.optimizer.param_groups[0]["lr"])

    def seen(self, gather: Callable[[Tensor], Tensor] = lambda x: x[None]) -> list[float] | None:
        """Sum of the losses since the last observation, of each rank. gather: () -> (world_size,), as dist.gather."""
        return None if self._losses is None else gather(self._losses).tolist()

    def metadata(self, seen: Sequence[float] | None = None) -> dict[str, Any]:
        """The position in the schedule, for JSON; learning rates are in the optimizer. seen: seen() of all ranks."""
        # lr_lambdas are functions, for which state_dict has None: the flags determine them
        plain = {k: v for k, v in self.inner.state_dict().items() if k != "lr_lambdas" and _is_plain(v)}
        return {"inner": plain, "steps": self._steps, "losses": self.seen() if seen is None else list(seen)}

    def restore(self, metadata: Mapping[str, Any], rank: int = 0, world_size: int = 1) -> None:
        """Go to a saved position. Length and warm-up of the schedule stay those of this run."""
        self.inner.__dict__.update(metadata["inner"])
        self._steps, seen = metadata["steps"], metadata["losses"]
        self._losses = None
        if seen is not None:
            seen = seen if isinstance(seen, list) else [seen]  # a number in old checkpoints of one process
            # saved by another number of ranks: rank 0 takes the sum, since only the sum is used
            self._losses = torch.tensor(seen[rank] if len(seen) == world_size else sum(seen) * (rank == 0))

    def apply_length(self) -> tuple[float, float]:
        """After restore() into a schedule of another length: set the learning rate of this step in it.

        Returns the learning rate before and after. A schedule that follows the loss goes on as it is.
        """
        before = self.lr
        lambdas = getattr(self.inner, "lr_lambdas", None)
        if lambdas:
            rates = [base * fn(self.inner.last_epoch) for base, fn in zip(self.inner.base_lrs, lambdas, strict=True)]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            self.inner._last_lr = rates
        return before, self.lr


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return value == value and abs(value) != float("inf")  # JSON has no infinity; a fresh schedule has it already
    return value is None or isinstance(value, (bool, int, str))


def make_lr_schedule(optimizer: torch.optim.Optimizer, options: OptimizerOptions, num_steps: int) -> LrSchedule:
    """The schedule of --lr_schedule over num_steps optimizer steps."""
    return LrSchedule(optimizer, options, num_steps)


# ------------------------------------------------------------------------------------------------------------ clipping


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down to the norm max_norm (0: leave them). Returns the norm before, a scalar tensor, unread."""
    parameters = list(parameters)
    norm = total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
