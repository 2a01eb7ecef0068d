"""The systems of benchmarks/pairs.py as rows of flags, in sizes by machine and by corpus.

All have the same transformer, so they differ in the latent space, the diffusion process and the conditioning on the
source; published layouts and sizes are in scripts/embedding and scripts/diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pipelines.cli.programs import AUTOENCODER, DIFFUSION, PRETRAIN
from pipelines.stages import Stage


@dataclass(frozen=True)
class Size:
    """Flags of a size. {target}, {source} and {packed} in them are the token limits of the corpus."""

    network: str  # of every denoiser
    embeddings: str  # training of the two systems on token embeddings
    lm: str
    autoencoder: str
    latent: str
    steps: tuple[int, ...]  # sampling steps; the first table is of the largest
    candidates: int
    sources: int  # test pairs of each seed
    seeds: int
    batch: int  # texts in a sampling batch
    more_steps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # additional steps by sampler setting

    def with_sources(self, sources: int | None) -> Size:
        return self if sources is None else replace(self, sources=sources)


SIZES = {
    "cpu": Size(
        network="--tx_dim 128 --tx_depth 4 --scale_shift --disable_dropout --lr_schedule cosine --lr_warmup_steps 50",
        embeddings="--embedding_dim 32 --num_train_steps 1000 --train_batch_size 32 --learning_rate 1e-3",
        lm="--vocab_size 2000 --d_model 192 --layers 2 --heads 4 --num_train_steps 500 --train_batch_size 48"
        " --learning_rate 2e-3 --lr_warmup_steps 150 --eval_every 250 --eval_texts 200",
        autoencoder="--num_encoder_latents 24 --dim_ae 64 --num_layers 2 --l2_normalize_latents --lm_mode ft"
        " --max_latent_noise 0.7 --latent_noise_prob 0.5 --num_train_steps 400 --train_batch_size 32"
        " --learning_rate 1e-3 --lr_warmup_steps 50 --lr_schedule cosine --eval_every 400"
        " --eval_texts 100 --eval_batch_size 100",
        latent="--num_train_steps 1000 --train_batch_size 48 --learning_rate 1.5e-3",
        steps=(2, 5, 10, 25),
        candidates=5,
        sources=100,
        seeds=1,
        batch=250,
    ),
    "gpu": Size(
        network="--tx_dim 768 --tx_depth 12 --scale_shift --lr_schedule cosine --lr_warmup_steps 1000"
        " --mixed_precision bf16",
        embeddings="--embedding_dim 128 --num_train_steps 20000 --train_batch_size 256 --learning_rate 2e-4",
        lm="--vocab_size 4000 --d_model 512 --layers 4 --heads 8 --num_train_steps 6000 --train_batch_size 128"
        " --learning_rate 5e-4 --lr_warmup_steps 500 --eval_every 1000 --eval_texts 200 --mixed_precision bf16",
        autoencoder="--num_encoder_latents 32 --dim_ae 64 --num_layers 3 --l2_normalize_latents --num_train_steps 10000"
        " --train_batch_size 128 --learning_rate 2e-4 --lr_warmup_steps 500 --lr_schedule cosine --eval_every 5000"
        " --eval_texts 1000 --eval_batch_size 250 --mixed_precision bf16",
        latent="--num_train_steps 20000 --train_batch_size 256 --learning_rate 2e-4",
        steps=(2, 5, 10, 25, 100, 500),
        candidates=10,
        sources=500,
        seeds=3,
        batch=1000,
    ),
    # The embedded pairs: a vocabulary of some hundred words, which is learned within minutes.
    "tales": Size(
        network="--tx_dim 128 --tx_depth 3 --scale_shift --disable_dropout --lr_schedule cosine --lr_warmup_steps 50",
        embeddings="--embedding_dim 32 --num_train_steps 1500 --train_batch_size 32 --learning_rate 2e-3",
        lm="--d_model 128 --layers 2 --heads 4 --num_train_steps 400 --train_batch_size 64 --learning_rate 2e-3"
        " --lr_warmup_steps 50 --eval_every 200",
        autoencoder="--num_encoder_latents 8 --dim_ae 64 --num_layers 2 --l2_normalize_latents --num_train_steps 450"
        " --train_batch_size 64 --learning_rate 1.5e-3 --lr_schedule cosine --lr_warmup_steps 30 --eval_every 450"
        " --eval_texts 1000 --eval_batch_size 250",
        latent="--num_train_steps 1000 --train_batch_size 64 --learning_rate 2e-3",
        steps=(2, 5, 10, 25),
        candidates=5,
        sources=100,
        seeds=1,
        batch=250,
        more_steps={"DiffuSeq": (100,)},
    ),
}


@dataclass(frozen=True)
class CorpusFlags:
    """Token limits and tokenizers of a corpus of pairs."""

    target: int  # tokens of a target, of a source, and of both packed: at least 90 % of the pairs are not truncated
    source: int
    packed: int
    vocab: str = "byte-level --vocab_size 2000 --config vocab_lowercase=false"  # of the embeddings
    lm: str = (
        "--tokenizer bpe --config pos_init=sinusoidal --config random_token_prob=0.3 --mask_prob 0.1"
        " --config uncorrupted_prob=0.6"
    )
    cpu: str = "cpu"  # default --size on a CPU


CORPORA = {
    "qqp": CorpusFlags(40, 40, 64),
    "e2e-mr": CorpusFlags(48, 56, 96),
    "tales-pairs": CorpusFlags(32, 32, 66, "word-level --config vocab_lowercase=false", "--tokenizer word", "tales"),
}
OTHER = CorpusFlags(64, 64, 128)

COMMON = "--dataset_name {dataset} --data_dir {data} --device {device} --log_every 50 "
DENOISER = (  # pairs.py evaluates, so training evaluates as little as possible
    COMMON + "--objective {objective} --num_samples 16 --seq2seq_candidates 1 --sampling_timesteps 5 --sampler dpmpp"
    " --save_and_sample_every 1000000 --save_every 100 --eval_batch_size 16 --decoding greedy --scorer {scorer} "
)
EMBEDDINGS = (
    DENOISER + "--latent_space embeddings --vocab {vocab} --beta_schedule sqrt --timesteps 2000"
    " --schedule_sampler lossaware --padding generated --truncate_sources --max_seq_len {packed} "
)


@dataclass(frozen=True)
class System:
    """Training stages with their shares of the time, and sampler settings (flags) of the last stage."""

    description: str
    parts: tuple[tuple[Stage, float], ...]
    sampler_settings: Mapping[str, str]
    size_flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # stage -> fields of Size

    def stages(self, size: Size, has_lm: bool, values: Mapping[str, str]) -> list[tuple[Stage, float]]:
        """The stages with all placeholders of their flags replaced except {root}, and the share of each of the time."""
        parts = [part for part in self.parts if not (has_lm and part[0].name == "lm")]
        total = sum(share for _, share in parts)
        filled = []
        for stage, share in parts:
            text = " ".join([stage.flags, *(getattr(size, name) for name in self.size_flags[stage.name])])
            flags = text.format_map({**values, "root": "{root}"})
            filled.append((Stage(stage.name, stage.program, stage.title, stage.done_file, flags), share / total))
        return filled

    @property
    def run(self) -> str:
        """Name of the stage whose run is sampled."""
        return self.parts[-1][0].name


TEXTS = "".join(f"--{split}_file {{root}}/texts/{split}.jsonl " for split in ("train", "valid", "test"))
TEXTS += "--device {device} --log_every 50 --max_seq_len {longest} "
SYSTEMS = {
    "diffuseq": System(
        "DiffuSeq: token embeddings, source clean (partial noising), sqrt chain, ancestral steps with rounding",
        ((Stage("diffuseq", DIFFUSION, "DiffuSeq", "metrics.json", EMBEDDINGS), 1.0),),
        {
            "DiffuSeq": "--sampler ddpm --posterior_variance large --clamp",
            "DiffuSeq, by the solver": "--sampler dpmpp",
        },
        {"diffuseq": ("network", "embeddings")},
    ),
    "diffuseq_v2": System(
        "DiffuSeq-v2: the same with a learned absorbing state, discrete noise and a second-order solver",
        (
            (
                Stage(
                    "diffuseq_v2", DIFFUSION, "DiffuSeq-v2", "metrics.json",
                    EMBEDDINGS + "--learned_mean_embed --denoise --denoise_rate 0.5 ",
                ),
                1.0,
            ),
        ),
        {"DiffuSeq-v2": "--sampler dpmpp"},
        {"diffuseq_v2": ("network", "embeddings")},
    ),
    "latent": System(
        "latent diffusion: latents of an autoencoder around a language model, source by cross-attention",
        (
            (
                Stage(
                    "lm", PRETRAIN, "a small BART on sources and targets", "validation.json",
                    TEXTS + "{tokens}",
                ),
                0.35,
            ),
            (
                Stage(
                    "autoencoder", AUTOENCODER, "the autoencoder on sources and targets", "validation.json",
                    TEXTS + "--enc_dec_model {lm} --decoding greedy",
                ),
                0.45,
            ),
            (
                Stage(
                    "latent", DIFFUSION, "the denoiser with source texts", "metrics.json",
                    DENOISER + "--latent_model_path {root}/autoencoder --self_condition --max_seq_len {longest}"
                    " --max_source_len {source}",
                ),
                0.55,
            ),
        ),
        {
            "latent": "--sampler dpmpp",
            "latent, guided by 2": "--sampler dpmpp --cls_free_guidance 2",
        },
        {"lm": ("lm",), "autoencoder": ("autoencoder",), "latent": ("network", "latent")},
    ),
}  # fmt: skip
OBJECTIVES = {"latent": "pred_v"}  # the others predict x0
