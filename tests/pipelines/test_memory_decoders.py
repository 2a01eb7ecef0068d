"""Encoder-decoders that decode latents, from training to samples: BART and T5, sentence embeddings and other spaces."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latent_models.causal.memory_decoder import MemoryDecoder
from latent_models.spaces.decoded import DecodedSpace
from pipelines import train_text_decoder
from pipelines.adapt_decoder import adapt_decoder
from pipelines.cli.programs import TEXT_DECODER
from pipelines.sample import main as sample
from pipelines.steps.text_decoder import TextDecoderStep
from pipelines.text_diffusion import TextDiffusionPipeline
from tests.latent_models.tiny_encoders import make_encoder
from tests.latent_models.tiny_seq2seq import make_seq2seq
from utils.cli.parse import parse
from utils.errors import UserError
from utils.trackers import read_metrics

SHORT = (
    "--device cpu --no_wandb --mixed_precision no --max_seq_len 40 --num_train_steps 4 --train_batch_size 8 "
    "--log_every 1 --eval_every 2 --lr_warmup_steps 2 --config val_loss_examples=8 --eval_texts 4"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tales_folder) -> Path:
    """A folder with a tiny BERT, BART and T5, whose tokenizers have seen the texts."""
    root = tmp_path_factory.mktemp("memory_decoders")
    texts = [json.loads(line)["text"] for line in (tales_folder / "train.jsonl").open()]
    make_encoder("bert", root / "bert", texts)
    for family in ("bart", "t5"):
        make_seq2seq(root / family, family, texts)
    return root


@pytest.fixture(scope="module")
def train(programs, place) -> Callable[..., int]:
    """(output folder, flags, family, flags of the latents) -> exit code of a training."""

    def run(out: Path, flags: str = "", family: str = "bart", latents: str | None = None) -> int:
        space = f"--encoder_model {place / 'bert'}" if latents is None else latents
        line = (
            f"{programs.data} {SHORT} --decoder_model {place / family} {space} --cache_dir {place}/cache {flags} "
            f"--output_dir {out}"
        )
        return train_text_decoder.train(parse(TEXT_DECODER, line.split()))

    return run


def again(folder: Path, flags: str) -> int:
    return train_text_decoder.train(parse(TEXT_DECODER, f"--resume_dir {folder} --no_wandb {flags}".split()))


@pytest.fixture(scope="module")
def decoder(train, place) -> Path:
    assert train(place / "decoder", "--num_train_steps 12 --eval_every 6 --learning_rate 1e-2") == 0
    return place / "decoder"


@pytest.fixture(scope="module")
def run(programs, decoder, place) -> Path:
    """A denoiser of the embeddings, one vector a text."""
    latents = f"--latent_model_path {decoder} --cache_dir {place / 'cache'}"
    assert programs.diffusion(latents, place / "run", "--denoiser_variant mlp --decoding nucleus") == 0
    return place / "run"


@pytest.fixture(scope="module")
def pipeline(run) -> TextDiffusionPipeline:
    return TextDiffusionPipeline.from_pretrained(run, device="cpu")


def test_training_measures_what_latents_decide(decoder):
    lines = [line for line in read_metrics(decoder) if "val_loss" in line]
    assert [line["step"] for line in lines] == [6, 12]
    assert lines[-1]["val_loss"] < read_metrics(decoder)[0]["loss"]
    assert {"decoder/greedy/similarity", "decoder/swapped/similarity", "decoder/loss_clean"} <= lines[-1].keys()
    args = json.loads((decoder / "args.json").read_text())
    assert args["decoder_model_relative"] == "../bart" and args["decoder_fingerprint"]


@pytest.mark.parametrize("family, mode", [("bart", "lora"), ("t5", "ft")])
def test_an_interrupted_run_goes_on_bit_for_bit(train, stop_after, fingerprints, family, mode, tmp_path):
    flags = f"--decoder_mode {mode} --token_dropout 0.2"
    assert train(tmp_path / "whole", flags, family) == 0
    stop_after(TextDecoderStep, 3)
    assert train(tmp_path / "stopped", flags, family) == 143
    assert again(tmp_path / "stopped", "--resume_training") == 0
    assert fingerprints(tmp_path / "stopped") == fingerprints(tmp_path / "whole")


def test_an_evaluation_by_beams(decoder, tmp_path):
    flags = f"--eval --decoding greedy,beam --num_beams 2 --device cpu --output_dir {tmp_path}"
    assert again(decoder, flags) == 0
    found = json.loads((tmp_path / "evaluation" / "eval-valid.json").read_text())
    assert found["protocol"]["num_beams"] == 2 and "decoder/beam/similarity" in found


@pytest.mark.parametrize("decoding", ["nucleus", "greedy", "beam"])
def test_samples(run, capsys, decoding):
    assert sample([str(run), "-n", "2", "--device", "cpu", "--format", "jsonl", "--decoding", decoding]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 2 and {row["decoding"] for row in rows} == {decoding}


def test_a_text_does_not_depend_on_its_batch(decoder):
    space = DecodedSpace.from_pretrained(decoder)
    assert isinstance(space.decoder, MemoryDecoder)
    latents = space.encode_texts(["He ran home.", "She laughed at the garden.", "Yes."], 40)
    options = dict(max_length=40, do_sample=True, top_p=0.95, top_k=0, num_beams=1, decoder_candidates=2)
    torch.manual_seed(3)
    together = space.decode(latents, **options)
    torch.manual_seed(3)
    assert space.decode(latents[1:2], draw_rows=(1, 3), **options) == together[1:2]
    torch.manual_seed(3)
    assert space.decode(latents, decoder_noise=1.0, **options) != together
    with pytest.raises(UserError, match="infilling: a decoder of --decoder_model writes from left to right"):
        space.check_fill()


def test_a_saved_pipeline_is_complete(pipeline, tmp_path):
    assert pipeline.decoding == "nucleus"
    texts = {name: pipeline(3, generator=4, decoding=name).texts for name in ("nucleus", "beam")}
    pipeline.save_pretrained(tmp_path / "saved")
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    loaded = TextDiffusionPipeline.from_pretrained(tmp_path / "moved", device="cpu")
    assert {name: loaded(3, generator=4, decoding=name).texts for name in texts} == texts
    assert loaded.run.components.space.space.decoder.lm.name == str(tmp_path / "moved" / "decoder_model")
    loaded.save_pretrained(tmp_path / "twice")
    twice = TextDiffusionPipeline.from_pretrained(tmp_path / "twice", device="cpu")
    assert twice(3, generator=4).texts == texts["nucleus"]


def test_the_decoder_is_adapted_to_the_denoiser(run, decoder, place, tmp_path):
    flags = f"{SHORT} --num_train_steps 2 --cache_dir {place}/cache --config denoiser_steps=2".split()
    assert adapt_decoder(run, tmp_path / "adapted", flags) == 0
    before, after = DecodedSpace.from_pretrained(decoder), DecodedSpace.from_pretrained(tmp_path / "adapted")
    assert after.encoding_fingerprint() == before.encoding_fingerprint()
    assert not torch.equal(after.decoder.memory.output.weight, before.decoder.memory.output.weight)
    adapted = str(tmp_path / "adapted")
    swapped = TextDiffusionPipeline.from_pretrained(run, device="cpu", latent_model_path=adapted)
    assert len(swapped(2).texts) == 2


@pytest.mark.parametrize("space", ["compressed", "states"])
def test_other_latents_are_decoded(train, programs, chain, place, space, tmp_path):
    """By the model that encodes them, too, in the other space."""
    latents = {
        "compressed": f"--latent_model_path {chain / 'ae'}",
        "states": f"--latent_space states --enc_dec_model {chain / 'lm'}",
    }[space]
    own = f"--decoder_model {chain / 'lm'}" if space == "states" else ""
    flags = f"--num_train_steps 2 --decoder_mode freeze {own}"
    assert train(tmp_path / "decoder", flags, "t5", latents) == 0
    found = f"--latent_model_path {tmp_path / 'decoder'} --cache_dir {place / 'cache'}"
    assert programs.diffusion(found, tmp_path / "run") == 0
    first = TextDiffusionPipeline.from_pretrained(tmp_path / "run", device="cpu")
    texts = first(2, generator=1).texts
    first.save_pretrained(tmp_path / "saved")
    assert TextDiffusionPipeline.from_pretrained(tmp_path / "saved", device="cpu")(2, generator=1).texts == texts


def test_mixed_precision_and_a_dry_run(train, tmp_path, capsys):
    assert train(tmp_path / "run", "--mixed_precision bf16 --num_train_steps 2 --decoder_mode freeze") == 0
    assert train(tmp_path / "dry", "--dry_run") == 0
    assert "decoder" in capsys.readouterr().out and not (tmp_path / "dry").exists()


MISTAKES = {
    "--decoder_model {short}": "a text of --max_seq_len 40 tokens is longer than the 16 positions of --decoder_model",
    "--decoder_model {empty}": "--decoder_model {empty}",
    "--latent_model_path {decoder} --decoder_model {t5}": "is not the language model that",
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_a_mistake_ends_in_one_line(flags, train, programs, place, decoder, tmp_path):
    texts = ["He ran home.", "She laughed."]
    names = {"short": tmp_path / "short", "empty": tmp_path / "empty", "decoder": decoder, "t5": place / "t5"}
    make_seq2seq(names["short"], "bart", texts, max_position_embeddings=16)
    names["empty"].mkdir()
    with pytest.raises(UserError) as error:
        if "{decoder}" in flags:
            programs.diffusion(flags.format(**names), tmp_path / "out")
        else:
            train(tmp_path / "out", flags.format(**names))
    assert MISTAKES[flags].format(**names) in str(error.value) and "\n" not in str(error.value)
