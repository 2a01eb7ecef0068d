"""Training steps and sampling on a device that is not the CPU: all tensors are on it, and the host reads none of them.

The device is torch's `meta`: its tensors have shapes and no values. An operation that mixes such a tensor with one of
the CPU raises an error (except for tensors without dimensions, as on every device), and so does reading a value:
.item(), nonzero(), .cpu(). What passes here has no tensor on the wrong device on a GPU, and never waits for the GPU.
`meta` does not support random numbers of its own (utils/seeding draws them on the CPU), autocast (switched off below),
fused optimizers, decoding by a language model, whose next token depends on values, and --reference_kernels, for which
transformers checks whether each batch is padded.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from dataset_utils.batching import tokenize
from dataset_utils.packing import pack_pairs
from dataset_utils.splits import Split
from diffusion.options import SAMPLERS, ProcessOptions, SamplingOptions
from diffusion.samplers import make_sampler
from latent_models import cross_entropy
from latent_models.autoencoders.options import PerceiverOptions
from latent_models.autoencoders.perceiver import PerceiverAutoencoder
from latent_models.cache import DeviceLatentCache
from latent_models.language_models import LanguageModel
from latent_models.pretraining.options import PretrainingOptions
from latent_models.pretraining.small_bart import small_bart
from latent_models.spaces.compressed import CompressedSpace
from latent_models.spaces.embeddings import EmbeddingSpace
from latent_models.spaces.encoder_states import EncoderStatesSpace
from latent_models.spaces.options import EmbeddingOptions
from latent_models.speculative.draft_model import DraftModel
from latent_models.speculative.options import DraftModelOptions
from latent_models.tokenizers.special_ids import end_id, separator_id
from latent_models.tokenizers.training import train_tokenizer
from model.classifier import LatentClassifier
from model.options import ClassifierOptions, DenoiserOptions, EncoderDenoiserOptions
from pipelines.builders.diffusion_process import make_process
from pipelines.builders.models import DiffusionModel
from pipelines.components import Components
from pipelines.data.batch_sampler import TrainingSampler
from pipelines.data.cached_latents import ConditionalLatents, EncodedSplit, encode_or_load, make_source_reader
from pipelines.data.context_encoder import ContextEncoder, DenoiserWithContext
from pipelines.data.tokens import TokenSplit, tokenize_split
from pipelines.options import ClampOptions, ControlOptions, EmbeddingLossOptions
from pipelines.sampling.blanks import parse_blanks
from pipelines.sampling.generator import TextGenerator
from pipelines.sampling.hooks import ClassifierControl, RemaskHook, RoundingHook
from pipelines.sampling.inputs import PackedSources, infilling_inputs
from pipelines.sampling.sampler_call import SampleInputs
from pipelines.sampling.sdedit import SDEditStart
from pipelines.steps.autoencoder import AutoencoderStep, LatentAugmentation
from pipelines.steps.classifier import ClassifierStep
from pipelines.steps.denoiser_augmentation import DenoiserAugmentation
from pipelines.steps.denoising_lm import DenoisingLMStep
from pipelines.steps.diffusion import DiffusionStep, TimestepSampler
from pipelines.steps.distillation import DistillationStep
from pipelines.steps.draft_model import DraftModelStep
from pipelines.steps.embeddings import EmbeddingLoss, EmbeddingStep
from pipelines.steps.teacher import Teacher, split_grid
from utils.distributed import DistContext
from utils.ema import EMA
from utils.finite import FirstNonFinite
from utils.hooks import StepResult
from utils.loop import _gradients, _update
from utils.optim import make_lr_schedule, make_optimizer
from utils.options import OptimizerOptions
from utils.records import Condition
from utils.state import State

META = torch.device("meta")
RANKS = DistContext(device=META)
TEXTS = [f"{name} went to the {place} and {end}." for name in ("Anna", "Ben") for place in ("sea", "old tall house")
         for end in ("slept", "sang a song")]  # fmt: skip
LENGTH = 16
SAMPLER = TrainingSampler(0, 4)
NET = DenoiserOptions(tx_dim=64, tx_depth=1, self_condition=True, scale_shift=True)


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """torch has no autocast on this device, and torch.is_autocast_enabled raises an error."""
    enabled, autocast = torch.is_autocast_enabled, torch.autocast
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": kind != "meta" and enabled(kind))
    monkeypatch.setattr(
        torch, "autocast", lambda kind, *args, **how: nullcontext() if kind == "meta" else autocast(kind, *args, **how)
    )


class World:
    """A language model, its spaces and a labelled corpus of pairs, with all weights on the device."""

    def __init__(self) -> None:
        tokenizer = train_tokenizer(TEXTS, "word", 60, LENGTH)
        options = PretrainingOptions(d_model=64, layers=1, heads=2, max_seq_len=LENGTH)
        self.model = LanguageModel(small_bart(options, tokenizer), tokenizer, "tiny").to(META)
        self.autoencoder = PerceiverOptions(num_encoder_latents=4, dim_ae=64, num_layers=1, l2_normalize_latents=True)
        self.split = Split(TEXTS, labels=[row % 3 for row in range(len(TEXTS))], sources=TEXTS[::-1])
        self.data = tokenize_split(self.split, self.model, LENGTH)
        self.compressed = self.new_space().requires_grad_(False).eval()
        self.states = EncoderStatesSpace(self.model, LENGTH)

    def new_space(self) -> CompressedSpace:
        return CompressedSpace(self.model, PerceiverAutoencoder(self.model.dim, self.autoencoder, LENGTH).to(META))

    def tuned_space(self) -> CompressedSpace:
        """A space whose language model is trained, too."""
        options = PretrainingOptions(d_model=64, layers=1, heads=2, max_seq_len=LENGTH)
        bart = small_bart(options, self.model.tokenizer)
        model = LanguageModel(bart, self.model.tokenizer, "trained", frozen=False)
        return CompressedSpace(model, PerceiverAutoencoder(64, self.autoencoder, LENGTH)).to(META)

    def embeddings(self, **options) -> EmbeddingSpace:
        tokenizer = train_tokenizer(TEXTS, "word", 60, LENGTH)
        return EmbeddingSpace(tokenizer, EmbeddingOptions(embedding_dim=64, **options), LENGTH, 0.1).to(META)

    def context(self, trained: bool) -> ContextEncoder:
        return ContextEncoder(EncoderStatesSpace(self.model, LENGTH), shared=not trained, trained=trained)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def process(sampling: SamplingOptions | None = None, variant: str = "latent", **options):
    return make_process(ProcessOptions(**options), sampling or SamplingOptions(sampling_timesteps=4), variant)


def run_step(modules, fn, *, options=None, timestep_sampler=None, step=0) -> StepResult:
    """One real optimizer step with EMA on the device: forward and backward over micro-batches, then the update."""
    options = options or OptimizerOptions()
    optimizer = make_optimizer(modules, options)
    state = State(modules, optimizer, make_lr_schedule(optimizer, options, 10), EMA(modules), dist=RANKS)
    state.step = step
    modules.train()
    micros, size = fn.batch_sampler.accumulate, fn.batch_sampler.global_batch_size
    loss, values = _gradients(state, fn, micros, nullcontext, size, FirstNonFinite())
    result = _update(state, loss, values, state.parameters(), 1.0)
    if timestep_sampler is not None:
        timestep_sampler.sync_losses(state, result)
    found = [result.loss, result.grad_norm, *result.values.values(), *state.parameters()]
    found += [x for part in optimizer.state.values() for x in part.values() if isinstance(x, torch.Tensor) and x.ndim]
    found += [*state.ema.tensors.values()]
    assert {x.device for x in found} == {META}
    return result


# ------------------------------------------------------------------------------------------------------- training

CASES = {
    "plain": {},
    "classes": {"classes": 3, "objective": "pred_v", "loss_weighting": "min_snr", "T_schedule": "linear"},
    "sources": {"sources": "frozen", "objective": "pred_x0", "p2_loss_weight_gamma": 0.5, "loss_type": "l1"},
    "sources with a trained encoder": {"sources": "trained", "classes": 3, "objective": "pred_v"},
    "encoder states": {"space": "states", "times": "lossaware", "loss_type": "smooth_l1"},
    "a chain": {"beta_schedule": "sqrt", "timesteps": 20, "times": "lossaware", "train_schedule": "cosine"},
    "first release": {"space": "states", "variant": "states", "sources": "frozen", "times": "fixstep"},
    "Hugging Face encoder": {"variant": "encoder", "beta_schedule": "cosine", "timesteps": 20},
    "residual MLP": {"variant": "mlp", "sources": "frozen", "classes": 3},
    "adaptive times": {"times": "adaptive", "objective": "pred_v", "loss_weighting": "x0"},
    "the linear path": {"times": "logit_normal", "objective": "pred_flow", "train_schedule": "rectified_flow"},
    "latents from disk": {"where": "disk"},
    "latents on the device": {"where": "device"},
}


@pytest.mark.parametrize("case", CASES)
def test_denoiser_step_runs_on_the_device(world, bert, tmp_path, case):
    options = dict(CASES[case])
    kind, variant, where = (options.pop(k, None) for k in ("space", "variant", "where"))
    classes, sources, times = options.pop("classes", 0), options.pop("sources", None), options.pop("times", "uniform")
    space = world.states if kind == "states" else world.compressed
    net = replace(NET, denoiser_variant=variant or "latent", class_conditional=classes > 0)
    context = None if sources is None else world.context(sources == "trained")
    if variant == "encoder":
        net = replace(net, scale_shift=False)
    encoder = EncoderDenoiserOptions(encoder_config=str(bert)) if variant == "encoder" else None
    model = DiffusionModel(space, net, LENGTH, classes, context.dim if context else 0, own_options=encoder).to(META)
    made = process(variant=variant or "latent", schedule_sampler=times, **options)
    read = network = None
    if context is not None:
        tokens = context.tokens(world.split.sources)
        encoded = EncodedSplit(context.states, tokens, None, META)
        read = make_source_reader(context, tokens, encoded, torch.arange(len(tokens)))
        network = DenoiserWithContext(model.denoiser, context.states) if context.trained else None
    texts = EncodedSplit(space, world.data, None, META)
    if where is not None:
        on_disk = EncoderStatesSpace(LanguageModel(small_bart(PretrainingOptions(
            d_model=64, layers=1, heads=2, max_seq_len=LENGTH), world.model.tokenizer), world.model.tokenizer, "cpu"),
            LENGTH)  # fmt: skip
        cached = encode_or_load(on_disk, world.data, tmp_path, "train", "states", DistContext(), "off")
        cache = DeviceLatentCache(cached.cache, META) if where == "device" else cached.cache
        space, texts = world.states, EncodedSplit(world.states, world.data, cache, META)
        model = DiffusionModel(space, net, LENGTH, classes).to(META)
    timestep_sampler = TimestepSampler(made, RANKS)
    source = ConditionalLatents(model.normalize(space), texts, classes > 0, read)
    step = DiffusionStep(network or model.denoiser, source, made, SAMPLER, 10, True, timestep_sampler)
    result = run_step(model, step, timestep_sampler=timestep_sampler)
    assert result.values.keys() == {f"loss_q{q}" for q in (0, 1, 2, 3)}


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
def test_every_optimizer_updates_on_the_device(world, optimizer):
    """Over two micro-batches."""
    model = DiffusionModel(world.compressed, NET, LENGTH, 0).to(META)
    source = ConditionalLatents(
        model.normalize(world.compressed), EncodedSplit(world.compressed, world.data, None, META)
    )
    step = DiffusionStep(model.denoiser, source, process(), TrainingSampler(0, 2, accumulate=2), 10, True)
    run_step(model, step, options=OptimizerOptions(optimizer=optimizer))


@pytest.mark.parametrize("case", ["plain", "noised", "cached", "chunked", "ft", "decoder", "denoised"])
def test_autoencoder_step_runs_on_the_device(world, monkeypatch, case):
    space = world.tuned_space() if case in ("ft", "decoder") else world.new_space()
    if case in ("chunked", "ft"):
        monkeypatch.setattr(cross_entropy, "MAX_LOGITS", 600)
    if case == "decoder":
        space.freeze_encoder()
    augmentation = LatentAugmentation()
    if case == "noised":
        augmentation = LatentAugmentation(0.3)
    elif case == "denoised":
        augmentation = LatentAugmentation(0.3, denoiser=DenoiserAugmentation(generator(world, sampler="ddpm"), STEPS))
    states = EncodedSplit(world.states, world.data, None, META) if case == "cached" else None
    step = AutoencoderStep(space, world.data, SAMPLER, META, augmentation=augmentation, pad_to=LENGTH, states=states)
    run_step(space, step)


@pytest.mark.parametrize("case", ["plain", "classes", "pairs", "running text", "absorbing", "masked"])
def test_embedding_step_runs_on_the_device(world, case):
    space = world.embeddings(padding="masked" if case == "masked" else "generated")
    data = TokenSplit(world.split, tokenize(space.tokenizer, TEXTS, LENGTH), space.pad_id)
    if case == "pairs":
        data = TokenSplit(world.split, packed(space), space.pad_id)
    classes, absorbing = 3 * (case == "classes"), case == "absorbing"
    net = replace(NET, class_conditional=classes > 0)
    model = DiffusionModel(space, net, LENGTH, classes, absorbing=absorbing).to(META)
    made = process(objective="pred_x0", beta_schedule="sqrt", timesteps=20)
    loss = EmbeddingLoss(model.denoiser, space, made, model.absorbing, 0.2 if absorbing else 0.0)
    step = EmbeddingStep(
        loss, loss, data, SAMPLER, 10, EmbeddingLossOptions(), device=META, self_condition=True,
        class_conditional=classes > 0, reg_rate=0.1, max_prefix_fraction=0.5 if case == "running text" else None,
        timestep_sampler=(timestep_sampler := TimestepSampler(made, RANKS)),
    )  # fmt: skip
    run_step(model, step, timestep_sampler=timestep_sampler)


def packed(space: EmbeddingSpace):
    end, separator = end_id(space.tokenizer), separator_id(space.tokenizer)
    return pack_pairs(space.tokenizer, TEXTS, TEXTS, LENGTH, end_id=end, separator_id=separator, truncate="longest")


@pytest.mark.parametrize("kind", ["compressed", "states", "embeddings"])
def test_classifier_step_runs_on_the_device(world, kind):
    space = {"compressed": world.compressed, "states": world.states}.get(kind) or world.embeddings(padding="masked")
    absorbing = kind == "embeddings"
    model = DiffusionModel(space, NET, LENGTH, 0, absorbing=absorbing).to(META)
    made = process(beta_schedule="sqrt", timesteps=20) if absorbing else process()
    parts = Components(model.normalize(space), model.requires_grad_(False), made)
    texts = EncodedSplit(space, world.data, None, META)
    classifier = new_classifier(space)
    run_step(classifier, ClassifierStep(classifier, texts, parts, SAMPLER))


def new_classifier(space) -> LatentClassifier:
    return LatentClassifier(space.dim, space.length, 3, ClassifierOptions(classifier_dim=64)).to(META)


@pytest.mark.parametrize("start", ["data", "own samples"])
def test_distillation_step_runs_on_the_device(world, start):
    prob = float(start == "own samples")
    made = process(objective="pred_v", train_prob_self_cond=prob)
    teacher_generator = generator(world, classes=3, guidance=2.0)
    sub_grids = split_grid(made.grid(2), made.grid(4))
    teacher = Teacher(teacher_generator, sub_grids, extra_estimate=True, sampler=make_sampler("dpmpp"))
    model = DiffusionModel(world.compressed, replace(NET, class_conditional=True), LENGTH, 3).to(META)
    source = ConditionalLatents(
        model.normalize(world.compressed), EncodedSplit(world.compressed, world.data, None, META), True
    )
    student = DistillationStep(model.denoiser, source, made, SAMPLER, 10, teacher, 2, self_condition=True)
    run_step(model, student, step=1)  # its second sampling step, which has one before it


def test_draft_model_step_runs_on_the_device(world):
    draft_model = DraftModel(world.model.dim, LENGTH, DraftModelOptions(draft_model_depth=1)).to(META)
    texts = EncodedSplit(world.compressed, world.data, None, META)
    run_step(draft_model, DraftModelStep(world.compressed, draft_model, texts, SAMPLER, LatentAugmentation(0.3)))
    assert draft_model.draft_ids(world.model.model, torch.randn(2, 4, world.model.dim, device=META)).device == META


def test_denoising_lm_step_runs_on_the_device(world):
    model = world.tuned_space().language_model
    step = DenoisingLMStep(model, world.data, PretrainingOptions(max_seq_len=LENGTH), SAMPLER, META, 4, 60)
    run_step(model, step)


# ------------------------------------------------------------------------------------------------------- sampling

STEPS = 2  # the last one ends at t = 0


def generator(world, space=None, *, classes=0, source_dim=0, absorbing=False, guidance=1.0, hooks=(), chain=False,
              truncate_noise=None, **sampling) -> TextGenerator:  # fmt: skip
    space = space or world.compressed
    net = replace(NET, class_conditional=classes > 0)
    model = DiffusionModel(space, net, LENGTH, classes, source_dim, absorbing=absorbing)
    model.statistics.length_counts[3:] += 1
    own = {"beta_schedule": "sqrt", "timesteps": 20} if chain else {}
    made = process(SamplingOptions(sampling_timesteps=STEPS, truncate_noise=truncate_noise, **sampling), **own)
    statistics = model.statistics  # the host reads the counts of lengths, so they stay on the CPU
    model.denoiser.to(META)
    statistics.mean, statistics.scale = statistics.mean.to(META), statistics.scale.to(META)
    return TextGenerator(
        model.normalize(space), model.denoiser.eval(), made, steps=STEPS, batch_size=3, device=META,
        autocast=nullcontext, max_length=LENGTH, guidance=guidance, hooks=hooks,
        absorbing=None if model.absorbing is None else model.absorbing.detach().to(META),
    )  # fmt: skip


def make_conditions(world, sources: bool):
    def conditions(batch_index: int, n: int, generator: torch.Generator) -> SampleInputs:
        states = torch.randn(n, 5, world.model.dim, generator=generator) if sources else None
        mask = torch.arange(5) < torch.arange(1, n + 1)[:, None] if sources else None
        return SampleInputs(Condition.of(torch.arange(n) % 3, states, mask))

    return conditions


@pytest.mark.parametrize(
    ("sampler", "grid", "chain"),
    [(sampler, grid, chain) for sampler in SAMPLERS for grid, chain in (("uniform", True), ("karras", False))]
    + [("dpmpp_sde", grid, False) for grid in ("uniform", "shifted", "log_snr", "logit_normal")],
)
def test_every_sampler_and_grid_runs_guided_on_the_device(world, sampler, grid, chain):
    made = generator(
        world, classes=3, source_dim=world.model.dim, guidance=2.0, sampler=sampler, time_grid=grid, chain=chain,
        ddim_sampling_eta=0.5 if sampler == "ddim" else None,
    )  # fmt: skip
    latents = made.sample_latents(0, 0, make_conditions(world, True))
    assert latents.x0.device == latents.mask.device == META and latents.x0.shape == (3, 4, 64)


@pytest.mark.parametrize(("kind", "truncate_noise"), [("states", 2.0), ("embeddings", None)])
def test_spaces_of_variable_length_sample_on_the_device(world, kind, truncate_noise):
    space = world.states if kind == "states" else world.embeddings(padding="masked")
    made = generator(world, space, sampler="ddpm", truncate_noise=truncate_noise, classes=3, guidance=2.0)
    assert made.sample_latents(0, 0, make_conditions(world, False)).x0.device == META


@pytest.mark.parametrize(("kind", "langevin", "sampler"), [
    ("langevin", False, "dpmpp"), ("langevin", True, "ddpm"), ("x0", False, "ddim"),
])  # fmt: skip
def test_classifier_control_samples_on_the_device(world, kind, langevin, sampler):
    options = ControlOptions(classifier_guidance=kind, langevin_noise=langevin, guidance_steps=2)
    made = generator(world, sampler=sampler)
    classifier = new_classifier(world.compressed).requires_grad_(False).eval()
    made.hooks = (ClassifierControl(classifier, 1, made.process, options),)
    assert made.sample_latents(0, 0).x0.device == META


@pytest.mark.parametrize("options", [
    ClampOptions(clamp=True), ClampOptions(clamp=True, clamp_from=0.7), ClampOptions(rejection_rate=0.3),
])  # fmt: skip
def test_rounding_with_an_absorbing_state_samples_on_the_device(world, options):
    made = generator(world, world.embeddings(), absorbing=True, sampler="ddpm", chain=True)
    made.hooks = (RoundingHook(options, made.space), RemaskHook(made.absorbing, 0.2))
    assert made.sample_latents(0, 0).x0.device == META


@pytest.mark.parametrize("padding", ["masked", "generated"])
def test_known_positions_sample_on_the_device(world, padding):
    made = generator(world, world.embeddings(padding=padding), sampler="dpmpp_sde", absorbing=True)
    embeddings = made.space.space
    texts = [
        parse_blanks(embeddings.tokenizer, text, 40, embeddings.pad_id) for text in ("Anna went ___ [blank:2].", "___")
    ]
    blanks = infilling_inputs(made.space, texts, META)
    sources = PackedSources(made.space, META, "longest").make_inputs(TEXTS[:2], 0)
    for inputs in (blanks, sources):
        latents = made.sample_latents(0, 0, lambda b, n, draws, inputs=inputs: inputs(0, 2).repeat(2), batch_size=4)
        assert latents.x0.device == latents.mask.device == META


def test_sdedit_start_samples_on_the_device(world):
    made = generator(world, sampler="ddpm", absorbing=True)
    x0 = torch.randn(3, 4, 64, device=META)
    made.hooks = (SDEditStart(x0, 0.6, shared_noise=True),)
    assert made.sample_latents(0, 0).x0.device == META


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    from transformers import BertConfig

    folder = tmp_path_factory.mktemp("encoder")
    small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=20)
    BertConfig(**small, max_position_embeddings=48).save_pretrained(folder)
    return folder


def test_the_device_rejects_mixed_tensors_and_reads(world):
    """The other tests of this file rely on it."""
    x = torch.zeros(2, 3, device=META)
    for mixed in (
        lambda: x + torch.zeros(2, 3),
        lambda: torch.where(torch.ones(2, 3) > 0, x, 0),
        lambda: x.index_copy(0, torch.tensor([0]), x[:1]),
        lambda: float(x.sum()),
        lambda: x.cpu(),
        lambda: x[x > 0],
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            mixed()
