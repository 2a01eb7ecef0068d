"""The program that trains a causal language model to decode latents: exact resume, what it measures, and mistakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train_latent_model
from latent_models.causal.options import TextDecoderOptions
from latent_models.spaces.decoded import DecodedSpace
from pipelines import train_text_decoder
from pipelines.cli.programs import TEXT_DECODER
from pipelines.data.batch_sampler import TrainingSampler
from pipelines.data.length_buckets import LengthBuckets
from pipelines.evaluators.text_decoder import moved_prompts
from pipelines.evaluators.use_of_latents import LEVELS, describe, other_texts, share_of_latents, verdict
from pipelines.steps.text_decoder import DecoderAugmentation, TextDecoderStep
from pipelines.text_diffusion import TextDiffusionPipeline
from tests.latent_models.tiny_causal import make_causal
from tests.latent_models.tiny_encoders import make_encoder
from tests.tiny_models import tiny_encoder
from utils import checkpoints
from utils.cli.parse import parse
from utils.errors import UserError
from utils.run_folder import write_json
from utils.seeding import StepRNG
from utils.trackers import read_metrics

SHORT = (
    "--device cpu --no_wandb --mixed_precision no --max_seq_len 40 --num_train_steps 6 --train_batch_size 8 "
    "--log_every 1 --eval_every 3 --lr_warmup_steps 2 --config val_loss_examples=16 --eval_texts 6"
)
PAIRS = ("greedy", "sample", "samples", "swapped")


@pytest.fixture(scope="module")
def place(tmp_path_factory, tales_folder) -> Path:
    """A folder with a tiny BERT and a tiny Llama whose tokenizers have seen the texts."""
    root = tmp_path_factory.mktemp("text_decoder")
    texts = [json.loads(line)["text"] for line in (tales_folder / "train.jsonl").open()]
    make_encoder("bert", root / "bert", texts)
    make_causal(root / "llama", "llama", texts, std=0.05, max_position_embeddings=128)
    return root


@pytest.fixture(scope="module")
def train(programs, place) -> Callable[..., int]:
    """(output folder, flags, flags of the latents) -> exit code of a training on the stories of the other tests."""

    def run(out: Path, flags: str = "", latents: str | None = None) -> int:
        space = f"--encoder_model {place / 'bert'}" if latents is None else latents
        line = (
            f"{programs.data} {SHORT} --decoder_model {place / 'llama'} {space} --cache_dir {place}/cache {flags} "
            f"--output_dir {out}"
        )
        return train_text_decoder.train(parse(TEXT_DECODER, line.split()))

    return run


def again(folder: Path, flags: str) -> int:
    return train_text_decoder.train(parse(TEXT_DECODER, f"--resume_dir {folder} --no_wandb {flags}".split()))


@pytest.fixture(scope="module")
def run(train, place) -> Path:
    folder = place / "run"
    assert train(folder, "--decoder_mode ft --num_train_steps 60 --learning_rate 1e-2 --eval_every 30") == 0
    return folder


def test_every_validation_measures_what_latents_decide(run):
    lines = [line for line in read_metrics(run) if "val_loss" in line]
    assert [line["step"] for line in lines] == [30, 60]
    names = {f"decoder/{pair}/{key}" for pair in PAIRS for key in ("similarity", "bleu", "rougeL")}
    losses = {f"decoder/{key}" for key in ("loss_clean", "loss_most_noise", "loss_without_latents")}
    assert names | losses | {"val_loss", "decoder/share_of_latents"} <= lines[-1].keys()
    assert lines[-1]["val_loss"] < read_metrics(run)[0]["loss"]
    assert all(-1 <= lines[-1][f"decoder/{pair}/similarity"] <= 1.0001 for pair in PAIRS)
    written = json.loads((run / "validation.json").read_text())
    assert {key: written[key] for key in names} == {key: lines[-1][key] for key in names}
    similarity = written["protocol"]["similarity"]
    assert similarity["name"].endswith("bert") and similarity["part_of_system"]
    rows = json.loads((run / "validation-samples.json").read_text())
    assert len(rows) == 6 and {"reference", "greedy", "nucleus", "nucleus, second"} <= rows[0].keys()
    best = checkpoints.load_best(run).metadata["best"]
    assert best["metric"] == "val_loss" and best["value"] == min(line["val_loss"] for line in lines)


def test_an_evaluation_repeats_the_validation(run, programs, tmp_path):
    last = read_metrics(run)[-1]
    args = json.loads((run / "args.json").read_text())
    assert args["decoder_noise"] == 0.3 and args["decoder_model_relative"] == "../llama"
    assert again(run, f"--eval --device cpu --output_dir {tmp_path}") == 0
    found = json.loads((tmp_path / "evaluation" / "eval-valid.json").read_text())
    assert found["val_loss"] == pytest.approx(last["val_loss"], rel=1e-3)  # of the best step, from encoded texts
    weights = {"checkpoint": "best", "step": checkpoints.load_best(run).step}
    assert weights.items() <= found["protocol"].items()
    for pair in PAIRS:
        assert found[f"decoder/{pair}/similarity"] == pytest.approx(last[f"decoder/{pair}/similarity"], abs=0.02)
    flags = f"--checkpoint newest --decoding greedy,beam --num_beams 2 --scorer {programs.scorer} --device cpu"
    assert again(run, f"--eval_test --eval_texts 4 {flags} --output_dir {tmp_path}") == 0
    found = json.loads((tmp_path / "evaluation" / "eval-test.json").read_text())
    assert {"checkpoint": "newest", "step": 60}.items() <= found["protocol"].items()
    assert found["protocol"]["num_beams"] == 2 and "decoder/beam/similarity" in found
    assert found["decoder/greedy/perplexity"] > 1 and found["decoder/sample/perplexity"] > 1


def test_texts_are_compared_by_an_encoder_that_is_no_part_of_the_system(run, place, programs, tmp_path):
    texts = [json.loads(line)["text"] for line in (programs.corpus / "train.jsonl").open()]
    tiny_encoder(tmp_path / "judge", texts)
    shutil.copytree(place / "bert", tmp_path / "copy")  # the same weights in another folder
    for name, is_part in (("judge", False), ("copy", True)):
        out = tmp_path / f"out-{name}"
        flags = f"--eval --eval_texts 4 --mauve_encoder {tmp_path / name} --device cpu --output_dir {out}"
        assert again(run, flags) == 0
        found = json.loads((out / "evaluation" / "eval-valid.json").read_text())
        similarity = found["protocol"]["similarity"]
        assert similarity["name"] == name and similarity["part_of_system"] is is_part
        assert similarity["pooling"] != "latents" and -1 <= found["decoder/swapped/similarity"] <= 1.0001


def test_an_interrupted_run_goes_on_bit_for_bit(train, stop_after, fingerprints, tmp_path):
    assert train(tmp_path / "whole", "--token_dropout 0.2") == 0
    stop_after(TextDecoderStep, 4)
    assert train(tmp_path / "stopped", "--token_dropout 0.2") == 143
    assert again(tmp_path / "stopped", "--resume_training") == 0
    assert fingerprints(tmp_path / "stopped") == fingerprints(tmp_path / "whole")


def test_a_learned_pooling_trains_with_the_decoder_and_resumes(train, place, fingerprints, tmp_path):
    latents = f"--encoder_model {place / 'bert'} --pooling learned --num_sentence_latents 3"
    assert train(tmp_path / "whole", "", latents) == 0
    assert train(tmp_path / "half", "--max_seconds 0", latents) == 0
    assert again(tmp_path / "half", "--resume_training") == 0
    assert fingerprints(tmp_path / "half")[1] == fingerprints(tmp_path / "whole")[1]  # it was evaluated once more
    trained = checkpoints.load(tmp_path / "whole").tensors["model"]
    name = next(key for key in trained if key.endswith("pooling.queries"))
    line = f"--train_file {place} --decoder_model {place / 'llama'} --max_seq_len 40 {latents}"
    fresh = train_text_decoder.make_space(parse(TEXT_DECODER, line.split()), place)
    assert not torch.equal(trained[name], fresh.state_dict()[name])


@pytest.mark.parametrize("tokens", ["", "--token_dropout 0.4"])
def test_accumulated_batches_equal_the_large_one(train, programs, tmp_path, tokens):
    texts = [json.loads(line)["text"].split() for line in (programs.corpus / "train.jsonl").open()]
    lines = [json.dumps({"text": " ".join(words[: 3 + i % 9])}) for i, words in enumerate(texts)]  # of many lengths
    (tmp_path / "short.jsonl").write_text("\n".join(lines))
    data = f"--train_file {tmp_path}/short.jsonl"
    for name, flags in (("one", ""), ("split", "--train_batch_size 2 --gradient_accumulation_steps 4")):
        assert train(tmp_path / name, f"{data} {flags} {tokens}") == 0
    one, split = (read_metrics(tmp_path / name) for name in ("one", "split"))
    for a, b in zip(one, split, strict=True):
        found, expected = ({key: line[key] for key in line.keys() & {"loss", "val_loss"}} for line in (a, b))
        assert found == pytest.approx(expected, rel=1e-4)
        assert a.get("grad_norm", 0) == pytest.approx(b.get("grad_norm", 0), rel=1e-3)


def test_which_tokens_are_hidden_does_not_depend_on_how_a_batch_is_split():
    augmentation = DecoderAugmentation(TextDecoderOptions(token_dropout=0.5))
    whole = augmentation.hidden(StepRNG(0, 3, 8, 0, 8), 20, 30)
    parts = [augmentation.hidden(StepRNG(0, 3, 8, start, start + 4), width, 30) for start, width in ((0, 20), (4, 12))]
    assert torch.equal(parts[0], whole[:4]) and torch.equal(parts[1], whole[4:, :12]) and whole.any()
    assert DecoderAugmentation(TextDecoderOptions()).hidden(StepRNG(0, 3, 8, 0, 8), 20, 30) is None


def test_batches_hold_texts_of_similar_lengths_and_every_text_once(tales_folder):
    lengths = torch.randint(5, 50, (1000,), generator=torch.Generator().manual_seed(0)).numpy()
    plain = TrainingSampler(7, batch_size=10, accumulate=2)
    sampler = LengthBuckets(plain, lengths, window=10)
    steps = [torch.cat([sampler.rows(step, micro, 1000) for micro in range(2)]) for step in range(50)]
    assert torch.cat(steps).sort().values.tolist() == list(range(1000))  # an epoch is 50 steps, 5 windows
    padding = [float(lengths[rows].max() - lengths[rows].mean()) for rows in steps]
    random = [plain.rows(step, 0, 1000) for step in range(50)]
    assert sum(padding) < 0.2 * sum(float(lengths[rows].max() - lengths[rows].mean()) for rows in random)
    late = LengthBuckets(plain, lengths, window=10)  # a resumed run
    assert torch.equal(late.rows(33, 1, 1000), sampler.rows(33, 1, 1000))
    longest = [int(lengths[rows].max()) for rows in steps[:10]]
    assert longest != sorted(longest)


@pytest.mark.parametrize("space", ["compressed", "states"])
def test_latents_of_autoencoders_and_states_are_decoded(train, chain, space, tmp_path):
    latents = {
        "compressed": f"--latent_model_path {chain / 'ae'}",
        "states": f"--latent_space states --enc_dec_model {chain / 'lm'}",
    }[space]
    assert train(tmp_path / "run", "--num_train_steps 2 --eval_every 2 --eval_texts 2", latents) == 0
    assert json.loads((tmp_path / "run" / "args.json").read_text())["latent_space"] == space
    loaded = DecodedSpace.from_pretrained(tmp_path / "run")
    assert loaded.decoder.prefix.num_tokens == (16 if space == "compressed" else 40)
    assert len(loaded.decode(loaded.encode_texts(["She ran."], 40), max_length=10)) == 1
    assert again(tmp_path / "run", f"--eval --eval_texts 2 --device cpu --output_dir {tmp_path / 'out'}") == 0


def test_latents_above_the_bound_are_encoded_at_each_step(train, tmp_path, capsys):
    flags = "--num_train_steps 2 --eval_every 2 --eval_texts 2"
    assert train(tmp_path / "cached", flags) == train(tmp_path / "live", f"{flags} --max_cache_gb 0") == 0
    said = capsys.readouterr().err
    for split in ("train", "valid"):
        assert f"note: the latents of the {split} texts would take " in said
    assert said.count("more than --max_cache_gb 0: they are encoded at each step") == 2
    for one, other in zip(*(read_metrics(tmp_path / name) for name in ("cached", "live")), strict=True):
        for key in ("loss", "val_loss", "grad_norm"):
            assert one.get(key, 0) == pytest.approx(other.get(key, 0), rel=1e-3)


def test_a_decoder_is_adapted_to_a_denoiser(run, programs, tmp_path, place, train, fingerprints):
    denoiser = f"--denoiser_variant mlp --decoding nucleus --cache_dir {place}/cache"
    assert programs.diffusion(f"--latent_model_path {run}", tmp_path / "diff", denoiser) == 0
    flags = (
        f"{programs.data} {SHORT} --cache_dir {place}/cache --resume_dir {run} --denoiser_run {tmp_path / 'diff'} "
        "--config denoiser_steps=2"
    )
    line = f"{flags} --output_dir {tmp_path / 'adapted'}"
    assert train_text_decoder.train(parse(TEXT_DECODER, line.split())) == 0
    adapted, before = DecodedSpace.from_pretrained(tmp_path / "adapted"), DecodedSpace.from_pretrained(run)
    assert adapted.encoding_fingerprint() == before.encoding_fingerprint()
    assert not torch.equal(adapted.decoder.prefix.output.weight, before.decoder.prefix.output.weight)
    args = json.loads((tmp_path / "adapted" / "args.json").read_text())
    assert args["decoder_mode"] == "ft" and args["encoder_model"] == str(place / "bert")  # of the decoder it began with
    numbers = [line for line in read_metrics(tmp_path / "adapted") if "val_loss" in line]
    assert len(numbers) == 2 and "decoder/swapped/similarity" in numbers[-1]
    line = f"{flags} --max_seconds 0 --output_dir {tmp_path / 'half'}"
    assert train_text_decoder.train(parse(TEXT_DECODER, line.split())) == 0
    assert again(tmp_path / "half", "--resume_training") == 0
    assert fingerprints(tmp_path / "half")[1] == fingerprints(tmp_path / "adapted")[1]


@pytest.mark.parametrize("where", ["another folder", "retrained in place"])
def test_a_decoder_goes_on_with_its_own_language_model_alone(train, place, programs, tmp_path, where):
    """Adapters, and the vectors that are made of latents, were trained for it."""
    texts = [json.loads(line)["text"] for line in (programs.corpus / "train.jsonl").open()]
    own = shutil.copytree(place / "llama", tmp_path / "llama")
    other = make_causal(tmp_path / "other", "llama", texts, std=0.1, max_position_embeddings=128)
    run = tmp_path / "run"
    assert train(run, f"--num_train_steps 2 --eval_every 2 --eval_texts 2 --decoder_model {own}") == 0
    flag = f"--decoder_model {other}"
    if where == "retrained in place":
        flag, _ = "", shutil.copy(other / "model.safetensors", own / "model.safetensors")
    before = (run / "args.json").read_bytes(), checkpoints.load(run).step
    write_json(tmp_path / "diff" / "args.json", {"schema_version": 2, "program": "train_text_diffusion.py"})
    adapt = f"{programs.data} {SHORT} --resume_dir {run} --denoiser_run {tmp_path / 'diff'}"
    for line in (
        f"--resume_training --resume_dir {run} --no_wandb --num_train_steps 3 --device cpu {flag}",
        f"{adapt} --cache_dir {place}/cache {flag} --output_dir {tmp_path / 'adapted'}",
    ):
        with pytest.raises(UserError, match=f"is not the language model that {run} was trained with") as error:
            train_text_decoder.train(parse(TEXT_DECODER, line.split()))
        assert "\n" not in str(error.value) and "--decoder_model" in str(error.value)
    assert ((run / "args.json").read_bytes(), checkpoints.load(run).step) == before
    assert not (tmp_path / "adapted" / "args.json").exists()


def test_latents_that_half_precision_cannot_hold_end_in_advice_that_works(train, place, tmp_path):
    from safetensors.torch import load_file, save_file

    encoder = shutil.copytree(place / "bert", tmp_path / "bert")
    weights = load_file(encoder / "model.safetensors")
    last = next(key for key in weights if key.endswith("layer.1.output.LayerNorm.weight"))
    weights[last] *= 1e6
    save_file(weights, encoder / "model.safetensors", metadata={"format": "pt"})
    flags, latents = "--num_train_steps 2 --eval_every 2 --eval_texts 2", f"--encoder_model {encoder} --pooling first"
    with pytest.raises(UserError, match="float16 cannot hold.*--encoder_layer, or .*--max_cache_gb 0") as error:
        train(tmp_path / "run", flags, latents)
    assert "\n" not in str(error.value) and "--latent_cache_dtype" not in str(error.value)
    assert train(tmp_path / "live", f"{flags} --max_cache_gb 0", latents) == 0


def test_an_adapted_decoder_inherits_the_noise_of_decoding_that_was_typed(run, tmp_path):
    """Else it is half of the largest noise of its own training."""
    write_json(tmp_path / "args.json", {"schema_version": 2, "program": "train_text_diffusion.py"})
    typed, saved = run.with_name("typed"), json.loads((run / "args.json").read_text())
    write_json(typed / "args.json", saved | {"decoder_noise": 0.1})

    def noise(folder: Path, flags: str = "") -> float | None:
        line = f"--train_file x --resume_dir {folder} --denoiser_run {tmp_path} {flags}"
        return parse(TEXT_DECODER, line.split()).config.decoding.decoder_noise

    assert noise(typed) == noise(typed, "--max_latent_noise 0.4") == 0.1
    assert noise(typed, "--decoder_noise 0.2") == 0.2
    assert noise(run) is noise(run, "--max_latent_noise 0.4") is None


def test_a_moved_run_finds_its_models(train, place, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for name in ("bert", "llama"):
        shutil.copytree(place / name, old / name)
    flags = f"--num_train_steps 2 --eval_every 2 --eval_texts 2 --decoder_model {old / 'llama'}"
    assert train(old / "run", flags, f"--encoder_model {old / 'bert'}") == 0
    old.rename(new)
    assert again(new / "run", f"--eval --eval_texts 2 --device cpu --output_dir {tmp_path / 'out'}") == 0
    assert again(new / "run", "--resume_training --num_train_steps 3 --device cpu") == 0


def test_the_program_of_autoencoders_trains_decoders_too(programs, place, monkeypatch, tmp_path, capsys):
    line = (
        f"{programs.data} {SHORT} --num_train_steps 1 --eval_every 1 --eval_texts 2 --decoder_model {place / 'llama'} "
        f"--encoder_model {place / 'bert'} --output_dir {tmp_path / 'run'}"
    )
    monkeypatch.setattr("sys.argv", ["train_latent_model.py", *line.split()])
    assert train_latent_model.main() == 0
    assert json.loads((tmp_path / "run" / "args.json").read_text())["program"] == TEXT_DECODER.name
    monkeypatch.setattr(
        "sys.argv", ["train_latent_model.py", "--eval", "--eval_texts", "2", "--resume_dir", str(tmp_path / "run")]
    )
    assert train_latent_model.main() == 0
    with pytest.raises(SystemExit):
        monkeypatch.setattr("sys.argv", ["train_latent_model.py", "--help"])
        train_latent_model.main()
    assert "--decoder_model" in capsys.readouterr().out


MISTAKES = {
    "": "no language model given: add --decoder_model",
    "--decoder_model {llama}": "no latents given: add --encoder_model",
    "--decoder_model {bert} --encoder_model {bert}": "--decoder_model {bert}",
    "--decoder_model {llama} --encoder_model /no/where": "--encoder_model /no/where: there is no such folder",
    "--eval --resume_dir {run} --mauve_encoder /no/where": "there is no such folder; --mauve_encoder takes",
    "--decoder_model {llama} --latent_space compressed": "--latent_space compressed needs --latent_model_path: add it",
    "--decoder_model {llama} --latent_space states --encoder_model {bert}": "contradict each other",
    "--decoder_model {llama} --encoder_model {bert} --pooling learned --latent_scaling whiten": "leave it out",
    "--decoder_model {llama} --encoder_model {bert} --max_seq_len 62": "--max_seq_len 62 is more than the 48",
    "--decoder_model {llama} --encoder_model {bert} --num_prefix_tokens 100": "100 prefix vectors and a text of",
    "--decoder_model {llama} --encoder_model {bert} --max_latent_noise 1.5": "--max_latent_noise",
    "--decoder_model {llama} --encoder_model {bert} --decoder_mode some": "--decoder_mode",
    "--decoder_model {llama} --encoder_model {bert} --denoiser_run {run}": "adapts a trained decoder: add --resume_dir",
    "--decoder_model {llama} --encoder_model {bert} --best_metric mauve": "--best_metric mauve is no validation metric",
    "--decoder_model {llama} --encoder_model {bert} --num_beams 3": "contradict each other",
    "--gen_data --resume_dir {run}": "a decoder has no sampler",
    "--eval --resume_dir {run} --num_samples 8": "give their number with --eval_texts",
    "--decoder_model {llama} --encoder_model {bert} --source_prompt": "--source_prompt needs a corpus of pairs",
    "--decoder_model {llama} --encoder_model {bert} --fsdp": "leave it out",
    "--decoder_model {llama} --latent_model_path {run}": "--latent_model_path {run}",
    "--resume_dir {run} --denoiser_run {run}": "name one of train_text_diffusion.py",
    "--resume_dir {run} --denoiser_run {run} --pooling last": "--pooling last differs from mean, with which",
    "--resume_dir {bert} --denoiser_run {run}": "args.json",
    "--resume_training --resume_dir {run} --num_prefix_tokens 2": "--num_prefix_tokens 2 differs from",
    "--resume_dir {run}": "alone has no effect: add one of",
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_a_mistake_ends_in_one_line(flags, programs, place, run, tmp_path):
    names = {"llama": place / "llama", "bert": place / "bert", "run": run}
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    line = flags.format(**names)
    if not flags.startswith(("--resume_training", "--eval", "--gen_data")):
        line = f"{programs.data} {SHORT} --output_dir {tmp_path / 'out'} {line}"
    with pytest.raises(UserError) as error:
        train_text_decoder.train(parse(TEXT_DECODER, line.split()))
    assert MISTAKES[flags].format(**names) in str(error.value) and "\n" not in str(error.value)
    assert not checkpoints.has_checkpoint(tmp_path / "out")
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before


def test_a_dry_run_shows_the_parts(programs, place, capsys):
    line = f"{programs.data} {SHORT} --decoder_model {place / 'llama'} --encoder_model {place / 'bert'} --dry_run"
    assert train_text_decoder.train(parse(TEXT_DECODER, line.split())) == 0
    out = capsys.readouterr().out
    assert "decoder" in out and "encoded once, in float16: " in out and "  train texts " in out
    line += " --pooling learned --num_sentence_latents 3"
    assert train_text_decoder.train(parse(TEXT_DECODER, line.split())) == 0
    assert "encoded once" not in capsys.readouterr().out, "latents that train are not cached"


def test_another_text_is_decoded_with_the_source_of_the_text_itself():
    prompts, rows = torch.arange(6)[:, None], torch.arange(5)
    others = other_texts(5)
    moved = moved_prompts(prompts, rows, rows[torch.tensor(others)])
    assert sorted(others) == list(range(5)) and all(other != text for text, other in enumerate(others))
    assert [int(moved[other]) for other in others] == [0, 1, 2, 3, 4] and moved[5] == 5


@pytest.mark.parametrize("reads, chosen", [(True, 2), (False, None)])
def test_sources_are_left_out_only_where_they_are_read(reads, chosen):
    augmentation = DecoderAugmentation(TextDecoderOptions(source_prompt=reads, source_dropout=0.5))
    found = augmentation.without_source(StepRNG(0, 0, 4, 0, 4))
    assert (None if found is None else int(found.sum())) == chosen, "an encoder-decoder has no source before its texts"


@pytest.mark.parametrize(
    "own, other, says",
    [(0.8, 0.1, "decide most of a text"), (0.4, 0.1, "decide a part"), (0.1, 0.1, "raise --token_dropout")],
)
def test_one_line_says_whether_latents_decide(own, other, says):
    found = {
        "decoder/greedy/similarity": own,
        "decoder/swapped/similarity": other,
        "decoder/loss_clean": 2.0,
        "decoder/loss_without_latents": 3.0,
    }
    found["decoder/share_of_latents"] = share_of_latents(found)
    assert says in verdict(found)
    assert "1.00 of 3.00 nats" in verdict(found)
    assert "decide nothing" in verdict({**found, "decoder/loss_clean": 2.99}), "a source may decide in their place"
    assert "--mauve_encoder" not in describe(found, LEVELS)
    found["protocol"] = {"similarity": {"name": "minilm", "part_of_system": True}}
    assert "cosine by minilm, a part of this system: --mauve_encoder names another" in describe(found, LEVELS)


@pytest.mark.slow
def test_smollm2_decodes_sentence_embeddings(programs, tmp_path):
    """The real models, from the package index: a few steps teach the decoder to use embeddings of stories, and samples
    of a residual MLP decode to texts."""
    from latent_models.pretrained.folders import make_folder

    encoder, decoder = tmp_path / "minilm-l6", tmp_path / "smollm2-135m"
    for folder in (encoder, decoder):
        make_folder(folder.name, folder)
    line = (
        f"{programs.data} --device cpu --no_wandb --encoder_model {encoder} --decoder_model {decoder} --max_seq_len 48 "
        f"--num_train_steps 60 --train_batch_size 16 --lr_warmup_steps 10 --eval_every 60 --eval_texts 20 "
        f"--log_every 10 --output_dir {tmp_path / 'run'}"
    )
    assert train_text_decoder.train(parse(TEXT_DECODER, line.split())) == 0
    found = read_metrics(tmp_path / "run")[-1]
    assert found["val_loss"] < 1.6
    assert found["decoder/greedy/similarity"] > found["decoder/swapped/similarity"] + 0.05
    assert found["decoder/loss_clean"] < found["decoder/loss_without_latents"]
    flags = "--denoiser_variant mlp --num_train_steps 60 --train_batch_size 32 --max_seq_len 48 --decoding nucleus"
    assert programs.diffusion(f"--latent_model_path {tmp_path / 'run'}", tmp_path / "diffusion", flags) == 0
    pipe = TextDiffusionPipeline.from_pretrained(tmp_path / "diffusion", device="cpu", sampling_timesteps=20)
    texts = pipe(4, generator=1).texts
    assert len(set(texts)) == 4 and all(len(text.split()) > 3 for text in texts)
    assert pipe.decoding == "nucleus" and texts == pipe(4, generator=1).texts
