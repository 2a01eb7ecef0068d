"""Denoiser augmentation of an adapted decoder: its latents, and which runs --denoiser_run accepts."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from dataset_utils.corpus import Corpus
from dataset_utils.options import DataOptions
from dataset_utils.registry import NOT_IN_CATALOG, load
from dataset_utils.splits import Split
from diffusion.options import ProcessOptions, SamplingOptions
from latent_models.language_models import LanguageModel
from latent_models.spaces.compressed import CompressedSpace
from latent_models.spaces.encoder_states import EncoderStatesSpace
from latent_models.spaces.normalization import LatentStatistics, NormalizedSpace
from pipelines import infill, rewrite, sample
from pipelines.adapt_decoder import main as adapt_decoder
from pipelines.builders.adapted import use_adapted_decoder
from pipelines.builders.diffusion_process import make_process
from pipelines.load_run import load_run
from pipelines.sampling.generator import TextGenerator
from pipelines.sampling.latent_sampler import LatentSampler
from pipelines.steps.autoencoder import AutoencoderStep, LatentAugmentation
from pipelines.steps.denoiser_augmentation import DenoiserAugmentation, conditions_of, load_denoiser_augmentation
from pipelines.text_diffusion import TextDiffusionPipeline
from utils import checkpoints
from utils.errors import UserError
from utils.seeding import StepRNG


class PerfectDenoiser(nn.Module):
    """A denoiser that always predicts the same x0, and counts its calls."""

    def __init__(self, x0):
        super().__init__()
        self.x0, self.calls = x0, 0

    def forward(self, z, time, mask, condition, x0_prev):
        self.calls += 1
        return self.x0.expand_as(z)


@pytest.fixture(scope="module")
def tuned(programs, chain, tmp_path_factory):
    """A folder with an autoencoder that was trained with its language model, and a denoiser of its latents."""
    root = tmp_path_factory.mktemp("tuned")
    assert programs.autoencoder(chain / "lm", root / "ae", "--lm_mode ft") == 0
    assert programs.diffusion(f"--latent_model_path {root / 'ae'}", root / "diff", "--num_train_steps 4") == 0
    return root


def make_augmentation(space, denoiser, sampler="ddpm", steps=6, **process):
    made = make_process(
        ProcessOptions(objective="pred_x0", **process), SamplingOptions(sampler=sampler, sampling_timesteps=9), "latent"
    )
    statistics = LatentStatistics(space.dim, space.length)
    statistics.mean += torch.linspace(-1, 1, space.dim)
    statistics.scale *= 3
    generator = TextGenerator(
        NormalizedSpace(space, statistics),
        denoiser,
        made,
        steps=9,
        batch_size=4,
        device=torch.device("cpu"),
        autocast=nullcontext,
        max_length=10,
    )
    return DenoiserAugmentation(generator, steps)


@pytest.mark.parametrize("process", [{}, {"beta_schedule": "cosine", "timesteps": 50}], ids=["continuous", "chain"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
def test_a_perfect_denoiser_returns_the_latents(programs, tuned, sampler, process):
    """In the coordinates of the space, from every timestep; a later start takes fewer steps."""
    space = CompressedSpace.from_pretrained(tuned / "ae")
    x0 = torch.randn(1, space.length, space.dim, generator=torch.Generator().manual_seed(0))
    statistics = torch.linspace(-1, 1, space.dim)
    denoiser = PerfectDenoiser((x0 - statistics) / 3)
    augment = make_augmentation(space, denoiser, sampler, **process)
    num_calls = set()
    for step in range(30):
        denoiser.calls = 0
        made = augment(x0.expand(5, -1, -1), StepRNG(0, step, 5, 0, 5))
        torch.testing.assert_close(made, x0.expand(5, -1, -1), atol=1e-4, rtol=1e-4)
        num_calls.add(denoiser.calls)
    assert num_calls == {1, 2, 3, 4, 5, 6}


def test_a_denoiser_starts_at_the_noised_latents(programs, tuned):
    """Of the scaled latents, at each time of its sampler but the last."""
    space = CompressedSpace.from_pretrained(tuned / "ae")
    x0 = torch.randn(1, space.length, space.dim, generator=torch.Generator().manual_seed(0))
    mean, seen = torch.linspace(-1, 1, space.dim), []
    augment = make_augmentation(space, PerfectDenoiser(torch.zeros(1, 1, 1)), "ddim")
    augment.generator.denoiser.register_forward_pre_hook(lambda module, args: seen.append(args[:2]))
    started = set()
    for step in range(30):
        seen.clear()
        rng = StepRNG(0, step, 2, 0, 2)
        augment(x0.expand(2, -1, -1), rng)
        z, time = seen[0]  # of alpha^2, as the network reads it
        alpha = time.view(-1, 1, 1).sqrt()
        eps = StepRNG(0, step, 2, 0, 2).normal("imagined", space.length, space.dim)
        torch.testing.assert_close(z, alpha * (x0 - mean) / 3 + (1 - alpha**2).sqrt() * eps, atol=1e-4, rtol=0)
        started.add(round(float(time[0]), 4))
    assert len(started) == 6


def test_only_the_selected_texts_are_augmented(programs, tuned):
    space = CompressedSpace.from_pretrained(tuned / "ae")
    rng = StepRNG(3, 7, 10, 0, 10)
    x0 = torch.randn(10, space.length, space.dim, generator=torch.Generator().manual_seed(2))
    augmentation = LatentAugmentation(
        denoiser=make_augmentation(space, PerfectDenoiser(torch.zeros(1, 1, 1))), denoiser_prob=0.7
    )
    augment = augmentation.sample(space, rng, torch.device("cpu"))
    same = (augment(x0) == x0).all((1, 2))
    assert torch.equal(same, augment.clean_mask) and int(same.sum()) == 3
    noisy = LatentAugmentation(0.5, 0.5, augmentation.denoiser, 0.7).sample(space, rng, torch.device("cpu"))
    assert torch.equal((noisy(x0) == x0).all((1, 2)), noisy.clean_mask)
    assert not LatentAugmentation() and LatentAugmentation(max_noise=0.1) and augmentation
    assert LatentAugmentation().clean_fraction == 1 and LatentAugmentation(0.5, 0.25).clean_fraction == 0.75
    assert augmentation.clean_fraction == pytest.approx(0.3)


def test_denoiser_augmentation_resumes_exactly(programs, chain, tuned, stopped_run, fingerprints, tmp_path):
    flags = (
        f"--lm_mode decoder --resume_dir {tuned / 'ae'} --denoiser_run {tuned / 'diff'} --config denoiser_steps=3 "
        "--denoiser_prob 0.5 "
        "--num_train_steps 16 --eval_every 4 --train_batch_size 8 --gradient_accumulation_steps 2 "
        "--max_latent_noise 0.3"
    )
    assert programs.autoencoder(chain / "lm", tmp_path / "whole", flags) == 0
    stopped_run(
        "autoencoder",
        AutoencoderStep,
        lambda: programs.autoencoder(chain / "lm", tmp_path / "parts", flags),
        tmp_path / "parts",
    )
    assert fingerprints(tmp_path / "whole") == fingerprints(tmp_path / "parts")
    before = CompressedSpace.from_pretrained(tuned / "ae")
    after = CompressedSpace.from_pretrained(tmp_path / "whole")
    assert checkpoints.load_best(tmp_path / "whole").step == 16, "best is the newest checkpoint in this mode"
    assert before.encoding_fingerprint() == after.encoding_fingerprint() and before.fingerprint() != after.fingerprint()
    assert programs.again("diffusion", tuned / "diff", f"--eval --latent_model_path {tmp_path / 'whole'}") == 0
    flags = flags.replace("--denoiser_prob 0.5", "--denoiser_prob 0")
    assert programs.autoencoder(chain / "lm", tmp_path / "without", flags) == 0
    whole = checkpoints.load(tmp_path / "whole").tensors["model"]
    plain = checkpoints.load(tmp_path / "without").tensors["model"]
    assert checkpoints.fingerprint(whole) != checkpoints.fingerprint(plain)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("diff", "latents of another autoencoder"),
        ("plain", "not trained on latents of an autoencoder"),
        ("nowhere", "nowhere"),
    ],
)
def test_a_denoiser_of_other_latents_is_rejected(programs, chain, tuned, tmp_path, run, message):
    if run == "plain":
        assert programs.diffusion(f"--enc_dec_model {chain / 'lm'}", tmp_path / "plain") == 0
    folder = {"diff": chain / "diff"}.get(run, tmp_path / run)
    space = CompressedSpace.from_pretrained(tuned / "ae")
    with pytest.raises(UserError, match=message):
        load_denoiser_augmentation(str(folder), space, 4, torch.device("cpu"))


def test_a_run_on_other_spaces_augments_their_latents(programs, chain):
    """Encoder states: of another number of positions for each text; padding neither matters nor changes."""
    space = EncoderStatesSpace(LanguageModel.from_pretrained(str(chain / "lm")), 40)
    augment = load_denoiser_augmentation(str(chain / "states"), space, 4, torch.device("cpu"))
    x0 = torch.randn(3, 40, space.dim, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(40) < torch.tensor([5, 40, 17])[:, None]
    made = augment(x0, StepRNG(0, 2, 3, 0, 3), mask)
    other = augment(torch.where(mask[..., None], x0, 7.0), StepRNG(0, 2, 3, 0, 3), mask)
    assert made.isfinite().all() and not made[~mask].any() and made[mask].abs().min() > 0
    torch.testing.assert_close(made, other)
    with pytest.raises(UserError, match="trained on other latents than this decoder reads"):
        shorter = EncoderStatesSpace(space.language_model, 30)
        load_denoiser_augmentation(str(chain / "states"), shorter, 4, torch.device("cpu"))


@pytest.fixture(scope="module")
def conditional(programs, chain, tales_folder, tmp_path_factory):
    """Pairs with labels, and a run on them that needs sources and has no null class."""
    root, files = tmp_path_factory.mktemp("conditional"), []
    for split in ("train", "valid", "test"):
        texts, both = (
            [json.loads(line) for line in (tales_folder / f"{name}{split}.jsonl").open()] for name in ("", "pairs_")
        )
        rows = [{"src": p["src"], "trg": p["trg"], "label": t["label"]} for t, p in zip(texts, both, strict=True)]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files.append(f"--{split}_file {root / split}.jsonl")
    flags = f"{' '.join(files)} --class_conditional --class_unconditional_prob 0 --seq2seq_candidates 1 --num_samples 2"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", root / "run", flags) == 0
    return root, " ".join(files)


def test_a_decoder_is_adapted_with_the_sources_and_classes_of_its_texts(programs, chain, conditional, monkeypatch):
    root, files = conditional
    seen, original = [], LatentSampler.make_denoise_fn

    def watched(self, condition, mask, *rest, **options):
        seen.append(condition)
        return original(self, condition, mask, *rest, **options)

    monkeypatch.setattr(LatentSampler, "make_denoise_fn", watched)
    flags = f"--lm_mode decoder --resume_dir {chain / 'ae'} --denoiser_run {root / 'run'} --num_train_steps 2 {files}"
    assert programs.autoencoder(chain / "lm", root / "adapted", flags) == 0
    assert len(seen) == 2 and all(len(c.class_id) == len(c.source) == 16 and c.keep_class.all() for c in seen)
    corpus = load(
        DataOptions(**{f"{split}_file": str(root / f"{split}.jsonl") for split in ("train", "valid", "test")})
    )
    pipeline = TextDiffusionPipeline.from_pretrained(root / "run", device="cpu")
    rows = torch.tensor([5, 0, 7])
    found = conditions_of(pipeline, corpus, "RUN")(rows)
    sources = [corpus.train.sources[i] for i in rows]
    labels = torch.tensor([corpus.train.labels[i] for i in rows])
    expected = pipeline.sources.make_inputs(sources, 0, labels)(0, 3).condition
    assert torch.equal(found.class_id, labels) and torch.equal(found.source, expected.source)
    names = [corpus.class_names[i] for i in labels]
    corpus.class_names = tuple(reversed(corpus.class_names))  # another corpus may list them in another order
    corpus.train.labels = [len(corpus.class_names) - 1 - label for label in corpus.train.labels]
    again = conditions_of(pipeline, corpus, "RUN")(rows)
    assert [pipeline.class_names[i] for i in again.class_id] == names


def test_a_decoder_is_adapted_to_a_run_on_pairs_in_one_command(programs, conditional, tmp_path):
    root, _ = conditional
    flags = "--num_train_steps 2 --train_batch_size 8 --device cpu --no_wandb --decoding greedy --eval_texts 4"
    flags += f" --config denoiser_steps=2 --output_dir {tmp_path / 'adapted'}"
    assert adapt_decoder([str(root / "run"), *flags.split()]) == 0
    own, adapted = (CompressedSpace.from_pretrained(p) for p in (root / "run/autoencoder", tmp_path / "adapted"))
    assert own.encoding_fingerprint() == adapted.encoding_fingerprint() and own.fingerprint() != adapted.fingerprint()
    flags = f"--eval --latent_model_path {tmp_path / 'adapted'} --output_dir {tmp_path / 'out'}"
    assert programs.again("diffusion", root / "run", flags) == 0
    found = json.loads((tmp_path / "out/evaluation/eval-valid.json").read_text())
    assert {"model/seq2seq/rougeL", "model/seq2seq/label_accuracy"} <= found.keys()
    run = load_run(root / "run", device="cpu", latent_model_path=str(tmp_path / "adapted"))
    space = run.components.space.space
    assert isinstance(space, CompressedSpace) and space.fingerprint() == adapted.fingerprint(), "not that of the run"
    own_run = shutil.copytree(root / "run", tmp_path / "run")
    use_adapted_decoder(own_run, tmp_path / "adapted")  # whose language model also reads the sources
    space = load_run(own_run, device="cpu").components.space.space
    assert isinstance(space, CompressedSpace) and space.fingerprint() == adapted.fingerprint()
    assert programs.again("diffusion", own_run, "--eval") == 0


def test_a_source_replaces_no_class_where_there_is_no_null_class(conditional, tmp_path, capsys):
    """In Python as on the command line: the null class of such a run is an untrained vector."""
    root, _ = conditional
    pipeline = TextDiffusionPipeline.from_pretrained(root / "run", device="cpu")
    text, source = "Ben ran to the garden.", "One night Ben ran to the garden."
    for call in (
        lambda **class_id: pipeline(source=source, output_type="latent", **class_id).latents,
        lambda **class_id: pipeline.candidates([source], 1, decoding="greedy", **class_id),
        lambda **class_id: pipeline.variations([text], source=source, **class_id),
    ):
        with pytest.raises(UserError, match="trained without a null class: give class_id"):
            call()
        assert len(call(class_id=1)) == 1
    for name, call in (
        ("interpolate", lambda: pipeline.interpolate(text, "Ben ran.", source=source)),
        ("infill", lambda: pipeline.infill(["Ben ran to the ___."], source=source)),
    ):
        with pytest.raises(UserError, match=f"without a null class, and {name} takes no class: use variations"):
            call()
    for main, flags in (
        (sample.main, ["--output_dir", str(tmp_path)]),
        (rewrite.main, ["--text", text]),
        (infill.main, ["--text", "Ben ran to the ___."]),
    ):
        with pytest.raises(SystemExit) as left:
            main([str(root / "run"), "--device", "cpu", "--source", source, *flags])
        captured = capsys.readouterr()
        assert left.value.code == 2 and "trained without a null class" in captured.err and not captured.out


def test_texts_without_the_conditions_of_a_run(programs, chain, conditional, capsys, tmp_path):
    root, _ = conditional
    start = f"--lm_mode decoder --resume_dir {chain / 'ae'} --denoiser_run"
    with pytest.raises(UserError, match="was trained with sources, and these texts have none: name a corpus of pairs"):
        programs.autoencoder(chain / "lm", tmp_path / "out", f"{start} {root / 'run'}")
    pipeline = TextDiffusionPipeline.from_pretrained(root / "run", device="cpu")
    corpus = Corpus("pairs", {"train": Split(["a"], None, ["b"])}, NOT_IN_CATALOG)
    with pytest.raises(UserError, match="cannot sample without a class: name a corpus with its classes"):
        conditions_of(pipeline, corpus, "RUN")
    pipeline.has_null_class = True
    assert conditions_of(pipeline, corpus, "RUN")(torch.tensor([0])).class_id is None
    assert "which these texts lack: it samples without a class" in capsys.readouterr().err


def test_denoiser_run_needs_lm_mode_decoder(programs, chain, tuned, tmp_path):
    with pytest.raises(UserError, match="--denoiser_run.*add --lm_mode decoder"):
        programs.autoencoder(chain / "lm", tmp_path / "out", f"--denoiser_run {tuned / 'diff'}")
