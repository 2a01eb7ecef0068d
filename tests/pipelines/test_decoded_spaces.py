"""Stage 2 on latents that a causal language model decodes: frozen embeddings, a vector a sentence, compressed latents,
encoder states; runs that move, saved pipelines, and one line for each mistake."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latent_models.spaces.decoded import DecodedSpace
from pipelines import train_classifier, train_text_decoder
from pipelines.cli.programs import CLASSIFIER, TEXT_DECODER
from pipelines.load_run import load_run
from pipelines.sample import main as sample
from pipelines.text_diffusion import TextDiffusionPipeline
from tests.latent_models.tiny_encoders import make_encoder
from utils import checkpoints
from utils.checkpoints import fingerprint
from utils.cli.parse import parse
from utils.errors import UserError
from utils.run_folder import write_json

SHORT = "--num_train_steps 2 --train_batch_size 16 --log_every 1 --config val_loss_examples=8 --eval_texts 4"


@pytest.fixture(scope="module")
def place(tmp_path_factory, tales_folder) -> Path:
    """A folder with a tiny BERT and a tiny GPT-2, on whose tokenizers the texts were seen."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.latent_models.tiny_encoders import byte_level

    root = tmp_path_factory.mktemp("decoded")
    texts = [json.loads(line)["text"] for line in (tales_folder / "train.jsonl").open()]
    make_encoder("bert", root / "bert", texts)
    tokenizer = byte_level(texts, "gpt2")
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    config = AutoConfig.for_model(
        "gpt2", vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=128, **ids
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "gpt2")
    tokenizer.save_pretrained(root / "gpt2")
    return root


@pytest.fixture(scope="module")
def decoder(programs, place):
    """name, flags -> the run folder of a decoder, trained once."""

    def train(name: str, flags: str) -> Path:
        folder = place / name
        if not folder.exists():
            line = (
                f"{programs.data} --device cpu --no_wandb --mixed_precision no --max_seq_len 40 {SHORT} "
                f"--decoder_model {place / 'gpt2'} --cache_dir {place / 'cache'} {flags} --output_dir {folder}"
            )
            assert train_text_decoder.train(parse(TEXT_DECODER, line.split())) == 0
        return folder

    return train


@pytest.fixture(scope="module")
def sentence(decoder, place) -> Path:
    return decoder("sentence", f"--encoder_model {place / 'bert'}")


@pytest.fixture(scope="module")
def run(programs, sentence, place) -> Path:
    """A denoiser of one vector a text, by class."""
    folder = place / "run"
    flags = "--class_conditional --normalize_latent --denoiser_variant mlp --decoding nucleus"
    latents = f"--latent_model_path {sentence} --cache_dir {place / 'cache'}"
    assert programs.diffusion(latents, folder, flags) == 0
    return folder


@pytest.fixture(scope="module")
def pipeline(run) -> TextDiffusionPipeline:
    return TextDiffusionPipeline.from_pretrained(run, device="cpu")


# -------------------------------------------------------------------------------------------------------- the space


def test_the_run_folder_is_of_its_own_space(run, sentence):
    args = json.loads((run / "args.json").read_text())
    assert args["latent_space"] == "sentence" and args["text_decoder"]
    copied = json.loads((run / "text_decoder" / "args.json").read_text())
    assert copied["encoder_model_relative"] == "../../bert" and copied["decoder_model_relative"] == "../../gpt2"
    one, other = checkpoints.load_best(run / "text_decoder").tensors, checkpoints.load_best(sentence).tensors
    assert fingerprint(one["model"]) == fingerprint(other["model"])


def test_both_stages_share_one_cache(run, place):
    # latents are cached before they are scaled, so a decoder and a denoiser read the same files
    assert len(list((place / "cache").rglob("cache.json"))) == 2, "training and validation texts, encoded once"


def test_latents_are_scaled(sentence, tales_folder):
    space = DecodedSpace.from_pretrained(sentence)
    texts = [json.loads(line)["text"] for line in (tales_folder / "train.jsonl").open()]
    x0 = space.encode_texts(texts, 40).x0
    assert x0.shape == (200, 1, 16)
    torch.testing.assert_close(x0.mean((0, 1)), torch.zeros(16), atol=0.02, rtol=0)
    torch.testing.assert_close(x0.square().mean(), torch.ones(()), atol=0.02, rtol=0)


def test_a_text_does_not_depend_on_its_batch(sentence):
    space = DecodedSpace.from_pretrained(sentence)
    latents = space.encode_texts(["He ran home.", "She laughed at the garden.", "Yes."], 40)
    options = dict(max_length=40, do_sample=True, top_p=0.95, top_k=0, num_beams=1)
    torch.manual_seed(3)
    together = space.decode(latents, **options)
    torch.manual_seed(3)
    assert space.decode(latents[1:2], draw_rows=(1, 3), **options) == together[1:2]
    torch.manual_seed(3)
    assert space.decode(latents, decoder_noise=1.0, **options) != together


def test_of_candidates_the_nearest_is_kept(sentence):
    space = DecodedSpace.from_pretrained(sentence)
    latents = space.encode_texts(["He ran home.", "She laughed at the garden.", "Yes."], 40)
    options = dict(max_length=20, do_sample=True, top_p=0.95, top_k=0, num_beams=1)
    torch.manual_seed(3)
    drawn = [space.decode(latents, **options) for _ in range(3)]
    torch.manual_seed(3)
    kept = space.decode(latents, decoder_candidates=3, **options)
    similar = [torch.cosine_similarity(space.encode_texts(texts, 20).x0, latents.x0, dim=-1) for texts in drawn]
    for row in range(3):
        assert kept[row] == drawn[int(torch.stack(similar)[:, row].argmax())][row]


def test_projection_of_scaled_latents(decoder, chain, place):
    folder = decoder("l2", f"--latent_model_path {chain / 'ae_l2'}")
    space = DecodedSpace.from_pretrained(folder)
    x0 = space.project(torch.randn(2, space.length, space.dim))
    inner = space.scaling.inverse(x0)
    torch.testing.assert_close(inner.square().mean(-1), torch.ones(2, space.length), atol=1e-3, rtol=1e-3)


# ------------------------------------------------------------------------------------------------------ a trained run


def test_a_flag_of_decoding_leaves_nucleus_the_default(run, capsys):
    for flags in ([], ["--decoder_noise", "0.5"], ["--top_p", "0.8"]):
        assert sample([str(run), "-n", "1", "--class_id", "1", "--device", "cpu", "--format", "jsonl", *flags]) == 0
        assert json.loads(capsys.readouterr().out)["decoding"] == "nucleus"
    assert sample([str(run), "-n", "1", "--class_id", "1", "--device", "cpu", "--decoding", "greedy"]) == 0


def test_samples_by_class_and_from_texts(pipeline):
    assert len(pipeline(2, class_id=1).texts) == 2
    assert pipeline(2, generator=4).texts == pipeline(2, generator=4).texts
    assert pipeline.decoding == "nucleus"
    assert len(pipeline.interpolate("He ran home.", "She laughed.", 3)) == 3
    assert len(pipeline.variations(["He ran home."], 2)[0]) == 2
    assert len(pipeline.decode(pipeline.encode(["He ran home."]))) == 1
    with pytest.raises(UserError, match="infilling: a decoder of --decoder_model writes from left to right"):
        pipeline.infill(["He ___ home."])


def test_a_residual_mlp_is_guided_by_its_class(pipeline):
    plain, guided = (pipeline(2, class_id=1, guidance_scale=w, generator=4, output_type="latent") for w in (1, 3))
    assert not torch.equal(plain.latents.x0, guided.latents.x0) and guided.latents.x0.isfinite().all()
    assert len(pipeline(2, class_id=1, guidance_scale=3, generator=4).texts) == 2


def test_a_classifier_of_sentence_latents_controls_samples(programs, run, pipeline, tmp_path):
    line = (
        f"{programs.data} --diffusion_run {run} --device cpu --classifier_dim 64 --classifier_depth 1 "
        f"--num_train_steps 4 --train_batch_size 16 --log_every 2 --lr_warmup_steps 2 --output_dir {tmp_path / 'c'}"
    )
    assert train_classifier.train(parse(CLASSIFIER, line.split())) == 0
    flags = {"latent_classifier": str(tmp_path / "c"), "target_label": "1", "guidance_strength": 10}
    controlled = TextDiffusionPipeline.from_pretrained(run, device="cpu", **flags)
    plain, found = (one(2, class_id=1, generator=4, output_type="latent").latents for one in (pipeline, controlled))
    assert not torch.equal(plain.x0, found.x0) and len(controlled(2, class_id=1).texts) == 2


def test_an_evaluation_with_another_noise_and_candidates(programs, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run.parent / "bert", tmp_path / "bert")
    shutil.copytree(run.parent / "gpt2", tmp_path / "gpt2")
    flags = f"--eval --num_samples 4 --decoder_noise 0.1 --decoder_candidates 2 --scorer {programs.scorer}"
    assert programs.again("diffusion", folder, flags) == 0
    assert "decoder_noise" in (folder / "evaluation" / "eval-valid.json").read_text()


def test_training_goes_on(programs, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    where = f"--encoder_model {run.parent / 'bert'} --decoder_model {run.parent / 'gpt2'}"
    assert programs.resume("diffusion", folder, f"--num_train_steps 3 {where}") == 0
    assert checkpoints.load(folder).step == 3


def test_a_run_loads_after_a_move(run, tmp_path, pipeline):
    root = tmp_path / "elsewhere"
    for name in ("bert", "gpt2", "run"):
        shutil.copytree(run.parent / name, root / name)
    record = root / "run" / "text_decoder" / "args.json"
    args = json.loads(record.read_text())
    write_json(record, {**args, "encoder_model": "/gone/bert", "decoder_model": "/gone/gpt2"})
    moved = TextDiffusionPipeline.from_pretrained(root / "run", device="cpu")
    assert moved(2, generator=4).texts == pipeline(2, generator=4).texts
    assert Path(moved.run.components.space.space.language_model.name).resolve() == (root / "bert").resolve()


def test_a_saved_pipeline_is_complete(run, pipeline, tmp_path):
    texts = pipeline(3, generator=4).texts
    pipeline.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "README.md", "args.json", "model_index.json",
        "denoiser", "language_model", "text_decoder", "decoder_model",
    }  # fmt: skip
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    again = TextDiffusionPipeline.from_pretrained(tmp_path / "moved", device="cpu")
    assert again(3, generator=4).texts == texts
    names = [again.run.components.space.space.language_model.name, again.run.components.space.space.decoder.lm.name]
    assert names == [str(tmp_path / "moved" / name) for name in ("language_model", "decoder_model")]
    again.save_pretrained(tmp_path / "twice")
    assert TextDiffusionPipeline.from_pretrained(tmp_path / "twice", device="cpu")(3, generator=4).texts == texts
    card = (tmp_path / "moved" / "README.md").read_text()
    assert "| decoder | gpt2 |" in card and "| language model | bert |" in card


def test_a_saved_pipeline_reads_nothing_outside(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    from pipelines.pretrained.folder import write_index

    record = tmp_path / "saved" / "text_decoder" / "args.json"
    args = json.loads(record.read_text())
    write_json(record, {**args, "encoder_model_relative": "./../../elsewhere"})
    write_index(tmp_path / "saved", {})
    with pytest.raises(UserError, match="encoder_model_relative of text_decoder/args.json lies outside it"):
        TextDiffusionPipeline.from_pretrained(tmp_path / "saved", device="cpu")


# ------------------------------------------------------------------------------------------------------- other spaces


def test_sentences_have_a_mask_and_counts(programs, decoder, place, tales_folder):
    # the tales have four sentences or more; a file of its own has texts of one to three
    texts = [json.loads(line)["text"] for line in (tales_folder / "train.jsonl").open()]
    for split in ("train", "valid"):
        rows = [". ".join(text.split(". ")[: 1 + i % 3]).rstrip(".") + "." for i, text in enumerate(texts[:60])]
        (place / f"some_{split}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    files = f"--train_file {place / 'some_train.jsonl'} --valid_file {place / 'some_valid.jsonl'}"
    sentences = "--pooling sentences --num_sentence_latents 3 --latent_scaling whiten"
    folder = decoder("sentences", f"--encoder_model {place / 'bert'} {sentences} {files}")
    out = place / "run_of_sentences"
    flags = f"{files} --cache_dir {place / 'cache'}"
    assert programs.diffusion(f"--latent_model_path {folder}", out, flags) == 0
    counts = checkpoints.load(out).tensors["model"]["statistics.length_counts"]
    assert counts.tolist() == [0, 20, 20, 20], "texts by their number of sentences, not of tokens"
    loaded = TextDiffusionPipeline.from_pretrained(out, device="cpu")
    latents = loaded.encode(["He ran.", "He ran. She laughed. Ben cried. All slept."])
    assert latents.mask.sum(1).tolist() == [1, 3]
    assert not latents.x0[0, 1:].any()
    assert len(loaded(3).texts) == 3
    one, two, more = "He ran.", "He ran. She laughed.", "Ben cried. All slept."
    assert len(loaded.interpolate(two, more, 3)) == 3
    assert len(loaded.edit([two], add=more, remove="She sang. Ben cried.", strength=0.5)[0]) == 1
    for refused, verb in (
        (lambda: loaded.interpolate(one, two), "interpolated"),
        (lambda: loaded.edit([two], add=one, remove=more), "subtracted"),
        (lambda: loaded.edit([one, two], add=two, remove=more), "subtracted"),
    ):
        with pytest.raises(UserError, match=f"texts of 1 to 2 latents differ in length and cannot be {verb}: give"):
            refused()


def test_pooling_that_trains(programs, decoder, place):
    folder = decoder("learned", f"--encoder_model {place / 'bert'} --pooling learned --num_sentence_latents 2")
    saved = checkpoints.load_best(folder).tensors["model"]
    space = DecodedSpace.from_pretrained(folder)
    assert torch.equal(space.space.pooling.queries, saved["space.pooling.queries"])
    assert programs.diffusion(f"--latent_model_path {folder} --no_latent_cache", place / "run_learned") == 0
    assert load_run(place / "run_learned", device="cpu").components.space.length == 2


@pytest.mark.parametrize("kind", ["compressed", "states"])
def test_latents_of_a_language_model_get_the_same_decoder(kind, programs, decoder, chain, place, tmp_path):
    latents = {
        "compressed": f"--latent_model_path {chain / 'ae'}",
        "states": f"--latent_space states --enc_dec_model {chain / 'lm'}",
    }[kind]
    folder = decoder(kind, latents)
    out = place / f"run_{kind}"
    assert programs.diffusion(f"--latent_model_path {folder} --cache_dir {place / 'cache'}", out) == 0
    first = TextDiffusionPipeline.from_pretrained(out, device="cpu")
    texts = first(2, generator=1).texts
    first.save_pretrained(tmp_path / "saved")
    again = TextDiffusionPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert again(2, generator=1).texts == texts
    assert json.loads((out / "args.json").read_text())["latent_space"] == kind


def test_pairs_are_encoded_by_the_sentence_encoder(programs, sentence, place, tales_folder, tmp_path):
    pairs = " ".join(f"--{s}_file {tales_folder / f'pairs_{s}.jsonl'}" for s in ("train", "valid", "test"))
    out = place / "run_of_pairs"
    flags = f"{pairs} --seq2seq_candidates 2 --cache_dir {place / 'cache'}"
    assert programs.diffusion(f"--latent_model_path {sentence} --denoiser_variant mlp", out, flags) == 0
    first = TextDiffusionPipeline.from_pretrained(out, device="cpu")
    plain, guided = (
        first(source="Ben ran home.", guidance_scale=w, generator=1, output_type="latent").latents.x0 for w in (1, 3)
    )
    assert not torch.equal(plain, guided)
    assert first.run.components.context.shared and first.run.components.context.dim == 16
    texts = first(source=["Ben ran home.", "Lucy laughed."], generator=1).texts
    first.save_pretrained(tmp_path / "saved")
    again = TextDiffusionPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert again(source=["Ben ran home.", "Lucy laughed."], generator=1).texts == texts
    with pytest.raises(UserError, match="--train_context_encoder trains an encoder-decoder's encoder"):
        programs.diffusion(f"--latent_model_path {sentence}", tmp_path / "out", f"{flags} --train_context_encoder")


def test_a_decoder_that_reads_the_source(programs, decoder, place, tales_folder, tmp_path):
    """Both stages, a text for each source, other texts for other sources of the same latents, a saved pipeline."""
    pairs = " ".join(f"--{s}_file {tales_folder / f'pairs_{s}.jsonl'}" for s in ("train", "valid", "test"))
    flags = f"--encoder_model {place / 'bert'} --source_prompt --config source_dropout=0.5 {pairs}"
    reads = decoder("reads_sources", flags)
    measured = json.loads((reads / "validation.json").read_text())
    rows = json.loads((reads / "validation-samples.json").read_text())
    trained = DecodedSpace.from_pretrained(reads)
    given = [json.loads(line) for line in (tales_folder / "pairs_valid.jsonl").open()][: len(rows)]
    half = len(rows) // 2  # the latents of a text half of the rows away, and the source of the text itself
    latents = trained.encode_texts([row["reference"] for row in [*rows[half:], *rows[:half]]], 40)
    latents = replace(latents, prompt=trained.prompts([row["src"] for row in given]))
    assert trained.decode(latents, max_length=40, decoder_noise=0.0) == [row["swapped"] for row in rows]
    assert measured["decoder/loss_clean"] > 0 and json.loads((reads / "args.json").read_text())["source_prompt"]
    out, cache = place / "run_reads_sources", f"--cache_dir {place / 'cache'}"
    flags = f"{pairs} --seq2seq_candidates 2 {cache}"
    assert programs.diffusion(f"--latent_model_path {reads} --denoiser_variant mlp", out, flags) == 0
    pipe = TextDiffusionPipeline.from_pretrained(out, device="cpu")
    sources = ["Ben ran home.", "Lucy laughed at the garden, and at what stood in it."]
    found = pipe(source=sources, num_samples=2, generator=1)
    assert len(found.texts) == 4 and pipe.candidates(sources, 2, seed=1)[0] != pipe.candidates(sources, 2, seed=2)[0]
    space = pipe.run.components.space.space
    assert found.latents.prompt.tolist() == space.prompts(sources).repeat_interleave(2, 0).tolist()
    kept = space.prompts(["", sources[0]])
    ids = space.decoder.lm.tokenizer(sources[0], add_special_tokens=False)["input_ids"]
    assert [i for i in kept[1].tolist() if i >= 0] == [*ids, *space.decoder.lm.boundaries.between]
    assert kept.shape == (2, 40 + len(space.decoder.lm.boundaries.between)) and kept[0, 0] == -1
    latents = pipe.encode(["Ben ran home."] * 2)
    nucleus = {"decoding": "nucleus", "seed": 3}
    apart = pipe.decode(latents, source=sources, **nucleus)
    assert pipe.decode(latents, source=sources[0], **nucleus)[0] == apart[0]
    assert pipe.decode(latents, source=sources[1], **nucleus)[1] == apart[1]
    assert pipe.decode(latents, source=sources[1], **nucleus)[0] != apart[0], "the decoder reads its source"
    assert len(pipe.variations(["Ben ran."], 2, source=sources[0])[0]) == 2
    assert len(pipe.interpolate("Ben ran.", "Lucy laughed.", 3, source=sources[0])) == 3
    assert len(pipe.trajectory(2, snapshots=2, source=sources[0])) == 2
    pipe.save_pretrained(tmp_path / "saved")
    again = TextDiffusionPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert again(source=sources, num_samples=2, generator=1).texts == found.texts
    for use, message in (
        (lambda: pipe.decode(latents), "reads the source of each text"),
        (lambda: pipe.decode(latents, source=["one"]), "1 sources for 2 latents"),
        (lambda: programs.diffusion(f"--latent_model_path {reads}", tmp_path / "no"), "and this run has none"),
        (
            lambda: programs.diffusion(f"--latent_model_path {reads}", tmp_path / "no", f"{pairs} --ignore_sources"),
            "and this run has none",
        ),
    ):
        with pytest.raises(UserError, match=message):
            use()


def test_a_source_for_a_decoder_of_latents_alone_is_refused(pipeline):
    with pytest.raises(UserError, match="reads no sources, only latents: leave source out"):
        pipeline.decode(pipeline.encode(["He ran."]), source="one")


def test_a_student_of_such_a_run(programs, run, place):
    assert programs.student(run, place / "student", f"--distill_steps 2 --cache_dir {place / 'cache'}") == 0
    assert (place / "student" / "text_decoder" / "args.json").is_file()
    assert len(TextDiffusionPipeline.from_pretrained(place / "student", device="cpu")(2).texts) == 2


def test_a_dry_run_needs_no_weights(programs, sentence, tmp_path, capsys):
    assert programs.diffusion(f"--latent_model_path {sentence} --dry_run", tmp_path / "out") == 0
    assert "denoiser" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--latent_space sentence --enc_dec_model {lm}", "--latent_space sentence needs a decoder of its latents"),
        ("--latent_space states --latent_model_path {sentence}", "--latent_space states is not that of"),
        ("--latent_model_path {ae} --decoder_candidates 2", "--decoder_candidates 2 belongs to latents that a text"),
        ("--enc_dec_model {lm} --decoder_noise 0.1", "--decoder_noise 0.1 belongs to latents that a text"),
        ("--latent_model_path {sentence} --encoder_model {lm}", "is not the encoder that"),
        ("--latent_model_path {sentence} --decoder_model {other}", "is not the language model that"),
        ("--latent_model_path {sentence} --enc_dec_model {lm}", "has no effect on latents of frozen embeddings"),
        ("--latent_model_path {sentence} --kv_cache static", "--kv_cache static is of encoder-decoder models"),
        (
            "--latent_model_path {sentence} --config whole_batches=true",
            "--whole_batches on is of encoder-decoder models",
        ),
        ("--latent_model_path {compressed} --encoder_model {bert}", "is of frozen embeddings, and the latents of"),
        ("--latent_model_path {sentence} --max_seq_len 44", "--max_seq_len 44 is longer than the 40 tokens"),
        ("--latent_model_path {sentence} --decoder_noise 1.5", "--decoder_noise"),
        ("--latent_model_path {bert}", "holds no args.json"),
    ],
)
def test_mistakes_get_one_line(flags, message, programs, decoder, sentence, chain, place, tmp_path):
    compressed = decoder("compressed", f"--latent_model_path {chain / 'ae'}")
    other = tmp_path / "other"
    if "{other}" in flags:
        from transformers import AutoModelForCausalLM

        shutil.copytree(place / "gpt2", other)
        model = AutoModelForCausalLM.from_pretrained(other)
        with torch.no_grad():
            model.get_input_embeddings().weight.add_(1)
        model.save_pretrained(other)
    names = dict(lm=chain / "lm", ae=chain / "ae", sentence=sentence, bert=place / "bert", other=other)
    with pytest.raises(UserError) as found:
        programs.diffusion(flags.format(**names, compressed=compressed), tmp_path / "out")
    assert message in str(found.value) and "\n" not in str(found.value)


def test_another_decoder_of_the_same_latents_is_accepted(decoder, sentence, run, place):
    adapted = decoder("adapted", f"--encoder_model {place / 'bert'} --decoder_mode freeze")
    swapped = load_run(run, device="cpu", latent_model_path=str(adapted))
    assert swapped.components.space.space.decoder.lm.has_adapters is False
    whitened = decoder("whitened", f"--encoder_model {place / 'bert'} --latent_scaling whiten")
    with pytest.raises(UserError, match="gives other latents than the text decoder that this run was trained with"):
        load_run(run, device="cpu", latent_model_path=str(whitened))
