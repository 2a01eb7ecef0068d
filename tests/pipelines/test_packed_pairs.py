"""Pairs as one sequence with a known source (DiffuSeq and DiffuSeq-v2), and infilling of blanks."""

from __future__ import annotations

import io
import json
import shutil

import pytest
import torch
import torch.nn.functional as F

from dataset_utils.packing import null_sources
from latent_models.tokenizers.special_ids import filler_id
from pipelines.infill import main as infill
from pipelines.sample import main as sample
from pipelines.sampling.inputs import PackedSources
from pipelines.sampling.trajectory import Snapshot, show
from pipelines.steps.embeddings import EmbeddingLoss, StepNoise
from pipelines.text_diffusion import TextDiffusionPipeline
from utils import checkpoints
from utils.errors import UserError
from utils.records import Batch
from utils.seeding import StepRNG
from utils.trackers import read_metrics

SPACE = "--latent_space embeddings --embedding_dim 8 --timesteps 20 --max_seq_len 16 --seq2seq_candidates 3"
V2 = "--learned_mean_embed --denoise --denoise_rate 0.5 --self_condition"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A folder with train, valid and test pairs in DiffuSeq's format: a fruit and its color in two phrasings."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [(c, f) for c in ("red", "green", "blue", "white") for f in ("plum", "kiwi", "bean", "nut", "fig")]
    for name in ("train", "valid", "test"):
        lines = [json.dumps({"src": f"a {c} {f}", "trg": f"the {f} is {c}"}) + "\n" for c, f in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines * (10 if name == "train" else 1)))
    return folder


def train(programs, pairs, out, flags=""):
    data = " ".join(f"--{split}_file {pairs / split}.jsonl" for split in ("train", "valid", "test"))
    return programs.diffusion(f"{SPACE} {data}", out, f"--num_train_steps 4 {flags}")


@pytest.fixture(scope="module", params=["first", "second", "masked"])
def trained(request, programs, pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "run"
    flags = {"first": "", "second": V2, "masked": "--padding masked"}
    assert train(programs, pairs, folder, flags[request.param]) == 0
    return folder


def test_training_evaluates_candidates_and_logs_each_loss(trained):
    saved, lines = json.loads((trained / "args.json").read_text()), read_metrics(trained)
    assert saved["seq2seq"] and saved["padding"] in ("generated", "masked")
    found = {key for line in lines for key in line}
    names = ("rougeL", "diffuseq_bleu", "dist1", "mean_length", "mbr_diffuseq_bleu", "diffuseq_self_bleu", "div4")
    assert {f"model/seq2seq/{name}" for name in names} <= found
    if saved["learned_mean_embed"]:
        assert "absorbing" in checkpoints.load(trained).tensors["ema"]
        line = next(line for line in lines if "absorbing_norm" in line)
        terms = line["diffusion"] + line["decoder_nll"] + line["tT_loss"] + 0.01 * line["absorbing_norm"]
        assert line["loss"] == pytest.approx(terms, rel=1e-4)


def test_guidance_of_a_run_that_always_sees_its_sources_is_refused(trained, programs, pairs, tmp_path):
    """What is missing is a prediction without the source, not a corpus with sources."""
    says = "packs the source into every text: leave guidance out, or train with --seq2seq_unconditional_prob 0.1"
    with pytest.raises(UserError, match=says):
        TextDiffusionPipeline.from_pretrained(trained, device="cpu", cls_free_guidance=2)
    with pytest.raises(UserError, match=says):
        train(programs, pairs, tmp_path / "run", "--cls_free_guidance 2")
    args = json.loads((trained / "args.json").read_text())
    assert args["seq2seq_unconditional_prob"] == 0 and args["null_sources"] is False
    shutil.copytree(trained, tmp_path / "earlier")  # earlier releases recorded a share that they did not use
    del args["null_sources"]
    (tmp_path / "earlier/args.json").write_text(json.dumps(args | {"seq2seq_unconditional_prob": 0.1}))
    with pytest.raises(UserError, match=says):
        TextDiffusionPipeline.from_pretrained(tmp_path / "earlier", device="cpu", cls_free_guidance=2)


@pytest.fixture(scope="module", params=["", f"{V2} --padding masked"], ids=["first", "second"])
def with_null(request, programs, pairs, tmp_path_factory):
    """A run that hides the sources of half of its examples, evaluated with guidance."""
    folder = tmp_path_factory.mktemp("null") / "run"
    flags = f"--seq2seq_unconditional_prob 0.5 --cls_free_guidance 2 {request.param}"
    assert train(programs, pairs, folder, flags) == 0
    return folder


def test_guidance_by_dropping_a_packed_source(with_null, programs, tmp_path):
    assert json.loads((with_null / "args.json").read_text())["null_sources"] is True
    assert any("model/seq2seq/guide2/rougeL" in line for line in read_metrics(with_null))
    pipeline = TextDiffusionPipeline.from_pretrained(with_null, device="cpu", sampling_timesteps=3, cls_free_guidance=1)
    tokenizer, seen = pipeline.generator.space.space.tokenizer, []
    call = {"source": ["a red plum", "a blue nut"], "generator": 1, "output_type": "latent"}
    plain, unguided = pipeline(**call).latents.x0, pipeline(**call, guidance_scale=1).latents.x0
    hook = pipeline.generator.denoiser.register_forward_pre_hook(lambda module, args: seen.append(args))
    guided = pipeline(**call, guidance_scale=3).latents.x0
    hook.remove()
    assert torch.equal(plain, unguided) and not torch.equal(plain, guided)
    assert len(seen) == 3 and pipeline.candidates(call["source"], guidance=3, seed=1) != []
    vectors, filler = pipeline.generator.space.space.vectors(), filler_id(tokenizer)
    inputs = pipeline.sources.make_inputs(call["source"], 1)(0, 2)
    words = torch.tensor([row[1:4] for row in tokenizer(call["source"])["input_ids"]])
    for z, _, _, _, previous in seen:
        assert torch.equal(z[:2, 1:4], vectors[words]), "the first half sees its sources"
        assert torch.equal(z[2:, 1:4], vectors[filler].expand(2, 3, -1)), "the second sees none"
        assert torch.equal(z[2:, 0], z[:2, 0]) and torch.equal(z[2:][~inputs.known.mask], z[:2][~inputs.known.mask])
        if previous is not None and len(previous) == 4:
            assert torch.equal(previous[2:, 1:4], z[2:, 1:4]), "nor in the previous estimate"
    assert programs.again("diffusion", with_null, f"--eval --cls_free_guidance 3 --output_dir {tmp_path}") == 0
    assert "model/seq2seq/guide3/mbr_rougeL" in json.loads((tmp_path / "evaluation/eval-valid.json").read_text())


def test_a_source_is_hidden_in_training_and_its_length_stays(trained):
    space = TextDiffusionPipeline.from_pretrained(trained, device="cpu").generator.space.space
    tokenizer = space.tokenizer
    ids = torch.tensor(tokenizer(["a red plum", "a blue nut"])["input_ids"])
    known = torch.ones_like(ids, dtype=torch.bool)
    batch = Batch(ids, known, known_mask=known)
    hidden = null_sources(batch, torch.tensor([False, True]), filler_id(tokenizer), tokenizer.all_special_ids)
    assert torch.equal(hidden.input_ids[0], ids[0])
    assert hidden.input_ids[1].tolist() == [ids[1, 0].item(), *[filler_id(tokenizer)] * 3, ids[1, -1].item()]


def test_the_vocabulary_covers_words_that_only_sources_have(trained):
    survey = json.loads((trained / "survey.json").read_text())["splits"]["train"]
    assert survey["source"]["unknown"] == survey["unknown"] == 0


def test_rounding_nll_covers_only_the_target(trained):
    """The source is known, so its positions do not count."""
    generator = TextDiffusionPipeline.from_pretrained(trained, device="cpu").generator
    space, denoiser = generator.space.space, generator.denoiser
    absorbing = torch.nn.Parameter(torch.zeros(space.dim))
    loss = EmbeddingLoss(denoiser, space, generator.process, absorbing)
    torch.manual_seed(0)
    ids, known = torch.randint(5, 14, (2, space.length)), torch.arange(space.length) < 7
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), known_mask=known.expand(2, -1))
    noise = StepNoise(torch.tensor([0.3, 0.9]), *torch.randn(2, 2, space.length, space.dim), None)
    with torch.no_grad():
        losses = loss(batch, noise, None)
        found = losses["rounding_nll"]
        latents = space.add_sigma0_noise(space.encode(batch), noise.embedding_noise)
        _, x0_hat = loss.denoise(latents, space.known_positions(batch, latents), noise, None)
        nll = F.cross_entropy(
            F.linear(x0_hat, *space.head(space.vectors(), space.bias)).flatten(0, 1), ids.flatten(), reduction="none"
        ).view(ids.shape)
    torch.testing.assert_close(found, nll[:, 7:].mean(1), rtol=1e-3, atol=0)
    assert generator.process.loss_config.objective == "pred_x0"
    errors = (x0_hat - latents.x0).square()[:, 7:].mean((1, 2))
    torch.testing.assert_close(losses["diffusion"], errors, rtol=1e-3, atol=1e-6)


def test_a_network_in_training_sees_its_source_without_noise(trained):
    """At z and in the estimate that is fed back, whatever the absorbing state."""
    generator = TextDiffusionPipeline.from_pretrained(trained, device="cpu").generator
    space, seen = generator.space.space, []
    absorbing = torch.nn.Parameter(torch.full((space.dim,), 3.0))
    loss = EmbeddingLoss(generator.denoiser, space, generator.process, absorbing)
    torch.manual_seed(0)
    ids, known = torch.randint(5, 14, (2, space.length)), torch.arange(space.length) < 7
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), known_mask=known.expand(2, -1))
    rows = StepRNG(0, 0, 2, 0, 2).select_rows("all", 1.0)
    noise = StepNoise(torch.tensor([0.3, 0.9]), *torch.randn(2, 2, space.length, space.dim), rows)
    hook = generator.denoiser.register_forward_pre_hook(lambda module, args: seen.append(args))
    with torch.no_grad():
        loss(batch, noise, None)
    hook.remove()
    value = space.known_positions(batch, space.add_sigma0_noise(space.encode(batch), noise.embedding_noise)).value
    assert len(seen) == 2, "an estimate, and the prediction that is fed with it"
    for z, *_ in seen:
        torch.testing.assert_close(z[:, :7], value[:, :7])
        assert (z[:, 7:] - value[:, 7:]).abs().mean() > 0.1
    torch.testing.assert_close(seen[1][4][:, :7], value[:, :7])


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
def test_the_source_is_fixed_at_every_sampling_step(trained, sampler):
    pipeline = TextDiffusionPipeline.from_pretrained(trained, device="cpu", sampler=sampler, sampling_timesteps=3)
    generator = pipeline.generator
    assert isinstance(pipeline.sources, PackedSources)
    inputs = pipeline.sources.make_inputs(["a red plum", "a blue nut"], 1)
    call = generator.prepare(1, 0, lambda b, n, g: inputs(0, 2), 2)
    seen = []
    denoiser = generator.denoiser
    hook = denoiser.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x0 = call.run().x0
    hook.remove()
    fixed = call.known.mask
    assert len(seen) == 3 and fixed.any() and not fixed.all()
    for z in [*seen, x0]:
        assert torch.equal(z[fixed], call.known.value[fixed])
    text = pipeline.candidates(["a red plum"], 2)
    assert len(text[0]) == 2 and all("a red plum" not in t for t in text[0]), "decoded texts do not contain the source"


def test_lengths_of_targets_depend_on_the_sampling_seed(programs, pairs, tmp_path):
    assert train(programs, pairs, tmp_path / "run", "--padding masked --num_train_steps 1") == 0
    pipeline = TextDiffusionPipeline.from_pretrained(tmp_path / "run", device="cpu")
    pipeline.generator.space.statistics.pair_counts[:, 2:9] = 5  # targets of seven lengths

    def lengths(seed, n=12):
        return pipeline.sources.make_inputs(["a red plum"] * n, seed)(0, n).decode_mask.sum(1).tolist()

    assert lengths(1) == lengths(1) != lengths(2)
    assert lengths(1, 5) == lengths(1)[:5], "fewer sources are a prefix"
    assert len(set(lengths(1))) > 2


def test_an_absorbing_state_is_the_mean_of_the_noise_at_unknown_positions(programs, pairs, tmp_path):
    assert train(programs, pairs, tmp_path / "run", V2) == 0
    pipeline = TextDiffusionPipeline.from_pretrained(tmp_path / "run", device="cpu", rejection_rate=0.5)
    generator = pipeline.generator
    call = generator.prepare(1, 0, lambda b, n, g: pipeline.sources.make_inputs(["a red plum"], 1)(0, 1), 1)
    shift, fixed = call.shift[0], call.known.mask[0]
    assert torch.equal(shift[fixed], torch.zeros_like(shift[fixed]))
    torch.testing.assert_close(shift[~fixed][0], generator.absorbing.detach())
    assert len(generator.hooks) == 2  # rounding with rejection, and remasking
    assert len(pipeline.generate_from_sources(["a red plum", "a blue nut"], candidates=2)) == 2


def test_pretraining_on_blocks_of_running_text_and_finetuning(programs, tmp_path):
    file = tmp_path / "plain.txt"
    file.write_text("".join(f"the plum number {i} is red and green\n" for i in range(100)))
    flags = f"--latent_space embeddings --embedding_dim 8 --timesteps 20 --pretrain_blocks {V2} --max_seq_len 8"
    assert programs.diffusion(f"{flags} --train_file {file}", tmp_path / "run") == 0
    more = f"{flags} --train_file {file} --init_path {tmp_path / 'run'}"
    assert programs.diffusion(f"{more} --vocab {tmp_path / 'run' / 'tokenizer'}", tmp_path / "tuned") == 0
    with pytest.raises(UserError, match=r"another tokenizer.*--vocab .*run/tokenizer"):
        programs.diffusion(f"{more} --vocab byte-level", tmp_path / "other")


def test_a_source_that_fills_max_seq_len_is_rejected_or_truncated(programs, pairs, tmp_path):
    with pytest.raises(UserError, match="the source of row") as error:
        train(programs, pairs, tmp_path / "run", "--max_seq_len 6")
    assert "--truncate_sources" in str(error.value) and "\n" not in str(error.value)
    assert train(programs, pairs, tmp_path / "trimmed", "--max_seq_len 6 --truncate_sources") == 0


def test_sample_and_infill_reject_mistakes_with_a_run_of_embeddings(plain, tmp_path, capsys):
    (tmp_path / "latin").write_bytes("un caf\xe9 ___".encode("latin-1"))
    for main, flags, message in (
        (sample, "--decoding beam", "--decoding beam is for language models"),
        (sample, f"--output_dir {tmp_path / 'latin'}", "cannot write to"),
        (infill, "--text [blank:0]", "[blank:0] has no tokens to fill"),
        (infill, f"--text_file {tmp_path / 'latin'}", "latin, line 1: not UTF-8"),
    ):
        with pytest.raises(SystemExit) as left:
            main(f"--run {plain} --device cpu {flags}".split())
        (line,) = capsys.readouterr().err.splitlines()
        assert left.value.code == 2 and message in line


@pytest.fixture(scope="module")
def plain(programs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "run"
    assert programs.diffusion("--latent_space embeddings --embedding_dim 16 --timesteps 20", folder) == 0
    return folder


def test_infilling_changes_only_the_blanks(plain, capsys):
    pipeline = TextDiffusionPipeline.from_pretrained(plain, device="cpu")
    space = pipeline.generator.space
    # vectors of one length, far apart: untrained ones are too close, and of others the longest would be the likeliest
    table = space.space.vectors.table.data
    directions = torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    table.copy_(10 * torch.nn.functional.normalize(directions, dim=-1))
    words = sorted(w for w in space.space.tokenizer.get_vocab() if w.isalpha())[:3]
    text = f"{words[0]} ___ {words[1]} [blank:2] {words[2]}"
    (rows,) = pipeline.infill([text], 1)
    filled = rows[0].split()
    assert filled[0] == words[0] and filled[-1] == words[2] and words[1] in filled
    capsys.readouterr()
    flags = ["--num_samples", "2", "--device", "cpu", "--sampler", "ddim"]
    assert infill(["--run", str(plain), "--text", text, *flags]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp", "heun"])
@pytest.mark.parametrize("kind", ["plain", "compressed", "states"])
def test_a_trajectory_ends_in_the_sampled_texts(plain, chain, kind, sampler):
    run = {"plain": plain, "compressed": chain / "diff", "states": chain / "states"}[kind]
    pipeline = TextDiffusionPipeline.from_pretrained(run, device="cpu", sampler=sampler, sampling_timesteps=4)
    snapshots = pipeline.trajectory(2, snapshots=2, seed=5)
    assert [snapshot.step for snapshot in snapshots] == [2, 4] and snapshots[-1].t == 0
    assert not pipeline.generator.hooks  # the hook is removed afterwards
    final = pipeline(2, seed=5, decoding="greedy")
    if all(snapshots[-1].texts):
        assert snapshots[-1].texts == final


def test_eval_writes_and_prints_a_trajectory(plain, programs, tmp_path, capsys):
    assert (
        programs.again("diffusion", plain, f"--eval --output_dir {tmp_path} --trajectory --config trajectory_steps=3")
        == 0
    )
    found = json.loads((tmp_path / "trajectory.json").read_text())
    assert found["steps"] == 2 and len(found["views"]) == 2 and len(found["views"][0]["texts"]) == 3
    assert "[1/2] " in capsys.readouterr().err


def test_control_codes_never_reach_the_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    show(Snapshot(1, 0.5, ["a \033[31mred\a plum"]), 2, terminal)
    inside = terminal.getvalue().split("m", 1)[1].rsplit("\033[0m", 1)[0]
    assert "\033" not in inside and "\a" not in inside and terminal.getvalue().startswith("\033[38;5;")
