"""Flags of every training program: optimization, the loop, kernels, run folders, tracking."""

from __future__ import annotations

from dataclasses import dataclass

from utils.cli.flags import flag, table_keys

LR_SCHEDULES = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "reduce_lr_on_plateau", "greedy",
)  # fmt: skip


@dataclass
class OptimizerOptions:
    optimizer: str = flag(
        "adamw",
        "optimizer; its settings for all choices are --adam_beta1, --adam_beta2 and --adam_weight_decay",
        choices=table_keys("utils.optim", "OPTIMIZERS"),
        aliases={"awamW": "adamw"},  # the misspelt default of the annealed fork, which its args.json files contain
        published=True,
    )
    learning_rate: float = flag(1e-4, "peak learning rate", at_least=0, published=True)
    lr_schedule: str = flag(
        "cosine", "learning-rate schedule of transformers.get_scheduler", choices=LR_SCHEDULES, published=True
    )
    lr_warmup_steps: int = flag(1000, "steps of linear warm-up", unit="steps", at_least=0, published=True)
    adam_beta1: float = flag(
        0.9,
        "all optimizers: decay of the first moment (lion: of the update; muon: of tensors that are no hidden matrices)",
        at_least=0,
        at_most=1,
        published=True,
    )
    adam_beta2: float = flag(
        0.999,
        "all optimizers: decay of the second moment (lion: of the momentum)",
        at_least=0,
        at_most=1,
        published=True,
    )
    adam_weight_decay: float = flag(
        1e-6, "all optimizers: weight decay of tensors with two or more dimensions", at_least=0, published=True
    )
    muon_momentum: float = flag(
        0.95,
        "momentum of the matrices of --optimizer muon",
        at_least=0,
        at_most=1,
        needs=("optimizer", "muon"),
        config_only=True,
    )
    no_fused_optimizer: bool = flag(
        False, "update parameters, and their averages, one by one instead of in one kernel", config_only=True
    )
    clip_grad_norm: float = flag(
        1.0, "largest gradient norm; 0 switches clipping off", at_least=0, may_change="resume", published=True
    )


@dataclass
class EMAOptions:
    ema_decay: float = flag(
        0.9999, "largest decay of the averaged weights (EMA)", at_least=0, at_most=1, published=True
    )
    ema_decays: str | None = flag(
        None,
        "more averages of the weights, by their largest decays, A,B,C: that with the lowest validation loss is "
        "sampled, saved in best/ and read; each takes the memory of the weights",
    )
    ema_update_every: int = flag(
        1, "steps between updates of the averaged weights", unit="steps", at_least=1, published=True
    )


@dataclass
class LoopOptions:
    num_train_steps: int = flag(
        60000,
        "optimizer steps; a larger number extends a resumed run",
        unit="steps",
        at_least=0,
        may_change="resume",
        published=True,
    )
    train_batch_size: int = flag(
        16, "texts per process and micro-batch", unit="texts", at_least=1, may_change="resume", published=True
    )
    gradient_accumulation_steps: int = flag(
        1, "micro-batches per optimizer step", unit="micro-batches", at_least=1, may_change="resume", published=True
    )
    log_every: int = flag(50, "steps between log lines", unit="steps", at_least=1, may_change="both")
    save_every: int | None = flag(
        None, "steps between checkpoints; unset: the interval of evaluation", unit="steps", at_least=1
    )
    max_seconds: float | None = flag(
        None,
        "stop training after this time, save, evaluate (which takes extra time) and exit with code 0; resume to go on",
        unit="seconds",
        at_least=0,
        may_change="invocation",
    )
    random_seed: int = flag(42, "seed of all random numbers", at_least=0, published=True)
    mixed_precision: str | None = flag(
        None,
        "autocast of forward passes; unset: bf16 where the device computes it fast, else no",
        choices=("no", "fp16", "bf16"),
        may_change="both",
        published=True,
    )
    device: str = flag("auto", "device that computes", choices=("auto", "cuda", "mps", "cpu"), may_change="invocation")


@dataclass
class ValidationLossOptions:
    val_loss_examples: int = flag(
        128,
        "held-out texts for validation losses, always the same with the same noise",
        unit="texts",
        at_least=1,
        may_change="both",
        config_only=True,
    )


@dataclass
class BestCheckpointOptions:
    """Which checkpoint is kept as the best, and which one a trained run is read from; see pipelines/best_checkpoint."""

    best_metric: str | None = flag(
        None,
        "validation metric that selects the checkpoint in best/: a key of metrics.jsonl, or the end of one, such as "
        "val_ema_loss, mauve, perplexity, rougeL, label_accuracy, bleu; unset: the validation loss of a denoiser or "
        "causal model (pairs: rougeL, of a translation corpus sacrebleu) or text decoder, BLEU of an autoencoder, and "
        "none of other models, which then keep no best/",
        may_change="both",
    )
    patience: int | None = flag(
        None,
        "end training after this many validations in a row without a better value of the metric that selects best/",
        unit="validations",
        at_least=1,
        may_change="resume",
    )
    checkpoint: str | None = flag(
        None,
        "checkpoint from which a trained run is read that is evaluated, or named as the run of a denoiser, or trained "
        "on (--resume_dir alone): best, or newest; unset: the best of a run of pairs, of a run with --best_metric, of "
        "an autoencoder, a text decoder and a causal model, else the newest",
        choices=("best", "newest"),
        may_change="invocation",
    )


@dataclass
class KernelOptions:
    """Implementations of the same computation: they change speed, memory and the last digits of a result."""

    reference_kernels: bool = flag(
        False,
        "plain PyTorch instead of fused and chunked implementations, for comparison: attention as matrix products, "
        "torch's dropout, the optimizer parameter by parameter, the logits of a whole batch at once, decoding of whole "
        "batches",
    )

    attention: str = flag(
        "auto",
        "attention in one kernel, or as plain matrix products; auto: in one kernel, except in half precision on a CPU, "
        "where matrix products are faster for most shapes",
        choices=("auto", "fused", "plain"),
        config_only=True,
    )
    dropout: str = flag(
        "bits",
        "dropout masks on a CPU; bits: of 16 random bits for each element, several times as fast; uniform: of torch's "
        "uniform numbers",
        choices=("bits", "uniform"),
        config_only=True,
    )
    tf32: bool = flag(False, "float32 matrix products in TF32 on CUDA: 10 bits of mantissa, much faster")
    freed_memory: str = flag(
        "keep",
        "memory of freed tensors on the CPU; keep: the process keeps it for later tensors, up to its peak use; return: "
        "the C library returns it to the system, which is slower",
        choices=("keep", "return"),
        config_only=True,
    )


@dataclass
class CompileOptions:
    compile: str = flag(
        "auto",
        "torch.compile of the networks that train and sample, on CUDA with CUDA graphs; auto: on CUDA, and for the "
        "steps of a training of 10,000 and more on a CPU with a C++ compiler",
        choices=("auto", "on", "off"),
        may_change="both",
    )


@dataclass
class ShardingOptions:
    fsdp: bool = flag(
        False,
        "shard weights, gradients and optimizer state over the processes, for a large language model "
        "that trains (--lm_mode ft)",
        may_change="both",
    )


@dataclass
class RunOptions:
    output_dir: str | None = flag(
        None, "run folder; unset: {save_dir}/{dataset}/{date_time}", may_change="invocation", published=True
    )
    save_dir: str = flag("saved_models", "root of generated run folders", may_change="invocation", published=True)
    resume_dir: str | None = flag(
        None, "run folder to evaluate or to continue", may_change="invocation", published=True
    )
    resume_training: bool = flag(
        False, "continue training the run in --resume_dir, bit for bit", may_change="invocation", published=True
    )
    config: str | None = flag(
        None,
        "YAML or JSON file of flags, or NAME=VALUE[,NAME=VALUE]; may be repeated; other typed flags override it",
        may_change="invocation",
    )
    dry_run: bool = flag(
        False,
        "build all parts on the meta device, print the configuration, a table of modules and statistics of the corpus, "
        "and exit",
        may_change="invocation",
    )
    verbose: bool = flag(
        False, "list every trained tensor with its shape, too", needs="dry_run", may_change="invocation"
    )


@dataclass
class TrackingOptions:
    """Trackers besides metrics.jsonl, which is always written. None is switched on by a key in the environment."""

    wandb: bool = flag(False, "log to Weights & Biases, offline without an API key", may_change="invocation")
    wandb_name: str | None = flag(
        None, "name of the run in Weights & Biases; switches --wandb on", may_change="invocation", published=True
    )
    wandb_mode: str | None = flag(
        None,
        "online sends to the server, offline writes files for `wandb sync`; unset: WANDB_MODE, else online with an API "
        "key; online and offline switch --wandb on",
        choices=("online", "offline", "disabled"),
        may_change="invocation",
    )
    wandb_group: str | None = flag(
        None, "group of the run in Weights & Biases; switches --wandb on", may_change="invocation"
    )
    wandb_tags: str | None = flag(
        None, "tags of the run in Weights & Biases, A,B,C; switches --wandb on", may_change="invocation"
    )
    tensorboard: bool = flag(False, "log to TensorBoard, in tensorboard/ of the run folder", may_change="invocation")
    log_report: bool = flag(
        False,
        "write report.html when a training or evaluation ends; --wandb keeps it as an artifact",
        may_change="invocation",
    )
