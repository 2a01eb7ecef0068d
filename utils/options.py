"""Flags of the machinery: optimisation, the loop, run folders, tracking."""

from __future__ import annotations

from dataclasses import dataclass, field

LR_SCHEDULES = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "reduce_lr_on_plateau", "greedy",
)  # fmt: skip


@dataclass
class OptimizerOptions:
    optimizer: str = field(default="adamw", metadata=dict(
        help="update rule; letter case is ignored", choices=("adamw", "lion", "muon"),
        aliases={"awamW": "adamw"}))  # the default of the annealed fork, misspelt: its args.json hold it  # fmt: skip
    learning_rate: float = field(default=1e-4, metadata=dict(help="peak learning rate", at_least=0))
    lr_schedule: str = field(
        default="cosine",
        metadata=dict(help="learning-rate schedule of transformers.get_scheduler", choices=LR_SCHEDULES),
    )
    lr_warmup_steps: int = field(default=1000, metadata=dict(help="steps of linear warm-up", unit="steps", at_least=0))
    adam_beta1: float = field(
        default=0.9, metadata=dict(help="decay of the first moment (Lion: of the update)", at_least=0, at_most=1)
    )
    adam_beta2: float = field(
        default=0.999, metadata=dict(help="decay of the second moment (Lion: of the momentum)", at_least=0, at_most=1)
    )
    adam_weight_decay: float = field(
        default=1e-6, metadata=dict(help="weight decay of tensors with two or more dimensions", at_least=0)
    )
    muon_momentum: float = field(
        default=0.95, metadata=dict(help="momentum of the matrices of --optimizer muon", at_least=0, at_most=1)
    )
    no_fused_optimizer: bool = field(
        default=False, metadata=dict(help="update parameters, and their averages, one by one instead of in one kernel")
    )
    clip_grad_norm: float = field(
        default=1.0, metadata=dict(help="largest gradient norm; 0 switches clipping off", at_least=0)
    )


@dataclass
class AverageOptions:
    ema_decay: float = field(
        default=0.9999, metadata=dict(help="cap of the decay of averaged weights", at_least=0, at_most=1)
    )
    ema_update_every: int = field(
        default=1, metadata=dict(help="steps between updates of the averaged weights", unit="steps", at_least=1)
    )


@dataclass
class LoopOptions:
    num_train_steps: int = field(default=60000, metadata=dict(help="optimizer steps", unit="steps", at_least=0))
    train_batch_size: int = field(
        default=16, metadata=dict(help="texts per process and micro-batch", unit="texts", at_least=1)
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata=dict(help="micro-batches per optimizer step", unit="micro-batches", at_least=1)
    )
    log_every: int = field(default=50, metadata=dict(help="steps between log lines", unit="steps", at_least=1))
    save_every: int | None = field(
        default=None,
        metadata=dict(help="steps between checkpoints; unset: the interval of evaluation", unit="steps", at_least=1),
    )
    max_seconds: float | None = field(
        default=None,
        metadata=dict(
            help="stop training after so long, save, evaluate and exit 0 (leave the evaluation its time); a resumed "
            "run goes on",
            unit="seconds",
            at_least=0,
        ),
    )
    random_seed: int = field(default=42, metadata=dict(help="seed of everything that is drawn"))
    mixed_precision: str = field(
        default="no", metadata=dict(help="autocast of forward passes", choices=("no", "fp16", "bf16"))
    )
    device: str = field(default="auto", metadata=dict(help="where to compute", choices=("auto", "cuda", "mps", "cpu")))


@dataclass
class HeldOutOptions:
    val_loss_texts: int = field(
        default=128,
        metadata=dict(
            help="held-out texts that validation losses are the mean of, the same ones with the same noise each time",
            unit="texts",
            at_least=1,
        ),
    )


@dataclass
class KernelOptions:
    """How fast a number is computed, and its last digits, but not which number it is."""

    attention: str = field(
        default="fused",
        metadata=dict(help="attention in one kernel, or as plain matrix products", choices=("fused", "plain")),
    )
    tf32: bool = field(
        default=False, metadata=dict(help="float32 matrix products in TF32 on CUDA: 10 bits of mantissa, much faster")
    )
    freed_memory: str = field(
        default="keep",
        metadata=dict(
            help="memory of freed tensors, where the CPU computes: keep it for the next ones, as much as was in use at "
            "the peak, or return it to the system as the C library sees fit, which is slower",
            choices=("keep", "return"),
        ),
    )


@dataclass
class CompileOptions:
    compile: str = field(
        default="auto",
        metadata=dict(
            help="torch.compile of the networks that train and sample, on CUDA with CUDA graphs; auto: on CUDA alone",
            choices=("auto", "on", "off"),
        ),
    )


@dataclass
class ShardingOptions:
    fsdp: bool = field(
        default=False,
        metadata=dict(
            help="spread weights, gradients and the optimizer's state over the processes, for a large language model "
            "that trains (--lm_mode ft)"
        ),
    )


@dataclass
class RunOptions:
    output_dir: str | None = field(
        default=None, metadata=dict(help="run folder; unset: {save_dir}/{dataset}/{date_time}")
    )
    save_dir: str = field(default="saved_models", metadata=dict(help="root of generated run folders"))
    resume_dir: str | None = field(default=None, metadata=dict(help="run folder to evaluate or to continue"))
    resume_training: bool = field(
        default=False, metadata=dict(help="continue the run in --resume_dir, to the last bit")
    )
    config: str | None = field(default=None, metadata=dict(help="YAML or JSON file of flags; typed flags override it"))
    dry_run: bool = field(
        default=False,
        metadata=dict(
            help="parse, build every part, print configuration, shapes and what trains, and exit without training"
        ),
    )
    wandb: bool = field(default=False, metadata=dict(help="log to Weights & Biases, offline when no key is there"))
    wandb_name: str | None = field(
        default=None, metadata=dict(help="name of the run there; typing it switches --wandb on")
    )
