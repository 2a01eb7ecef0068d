"""Flags of decoding through the real programs: their effect on texts, and their record in protocols."""

from __future__ import annotations

import json

import pytest

from pipelines.sample import main as sample
from utils.errors import UserError

FLAGS = ("num_beams", "top_p", "top_k", "temperature", "repetition_penalty", "no_repeat_ngram_size", "length_penalty",
         "min_new_tokens")  # fmt: skip


def evaluate(programs, chain, tmp_path, flags):
    out = tmp_path / "eval"
    assert programs.again("diffusion", chain / "diff", f"--eval --num_samples 6 --output_dir {out} {flags}") == 0
    (results,) = (out / "evaluation").glob("eval-valid.json")
    texts = {path.name: path.read_text() for path in (out / "evaluation").glob("*nucleus*.txt")}
    return json.loads(results.read_text()), texts


def find(results, name):
    """Every value of an entry of protocols, wherever it stands."""
    if isinstance(results, dict):
        return ([results[name]] if name in results else []) + [x for v in results.values() for x in find(v, name)]
    return [x for v in results for x in find(v, name)] if isinstance(results, list) else []


def test_an_evaluation_records_the_flags_and_only_those_that_were_given(programs, chain, tmp_path):
    plain, texts = evaluate(programs, chain, tmp_path / "plain", "--decoding nucleus")
    assert all(find(plain, name) == [] for name in FLAGS)
    given = "--decoding nucleus,beam --top_p 0.3 --temperature 0.5 --num_beams 2 --min_new_tokens 20"
    results, changed = evaluate(programs, chain, tmp_path / "given", given)
    expected = {"top_p": 0.3, "temperature": 0.5, "num_beams": 2, "min_new_tokens": 20}
    for name in FLAGS:
        assert set(find(results, name)) == ({expected[name]} if name in expected else set())
    assert texts and texts.keys() == changed.keys() and texts != changed


def sampled(chain, tmp_path, capsys, flags):
    """Texts of pipelines.sample; its lines of JSON name the settings that flags changed."""
    argv = f"{chain / 'diff'} -n 8 --device cpu --format jsonl --output_dir {tmp_path} {flags}"
    assert sample(argv.split()) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [row["text"] for row in rows], rows[0].get("decoding_settings", {})


def test_the_likeliest_token_alone_is_greedy(chain, tmp_path, capsys):
    nucleus, _ = sampled(chain, tmp_path, capsys, "--decoding nucleus")
    first, settings = sampled(chain, tmp_path, capsys, "--decoding nucleus --top_k 1")
    penalties = "--repetition_penalty 1.2 --no_repeat_ngram_size 3 --min_new_tokens 4"
    assert settings == {"top_k": 1}
    assert first == sampled(chain, tmp_path, capsys, f"--decoding greedy {penalties}")[0] != nucleus


def test_a_length_penalty_makes_texts_longer_or_shorter(chain, tmp_path, capsys):
    lengths = {}
    for power in (-20.0, 20.0):
        texts, settings = sampled(chain, tmp_path, capsys, f"--decoding beam --length_penalty {power}")
        assert settings == {"length_penalty": power}
        lengths[power] = sum(len(text.split()) for text in texts)
    assert lengths[-20.0] < lengths[20.0]


def test_no_text_is_shorter_than_min_new_tokens(chain):
    from latent_models.generation.decoding import decoding_settings
    from latent_models.generation.options import DecodingOptions
    from pipelines.text_diffusion import TextDiffusionPipeline

    generator = TextDiffusionPipeline.from_pretrained(chain / "diff", device="cpu").generator
    space, model = generator.space.space, generator.space.space.language_model
    memory = space.autoencoder.decode(generator.space.denormalize(generator.sample_latents(1, 0).x0))
    for least in (4, 37):
        for strategy, settings in decoding_settings(DecodingOptions(min_new_tokens=least)).items():
            for ids in model.generate_ids(memory, None, 40, **settings):
                new = ids[1:].tolist()
                assert model.tokenizer.eos_token_id not in new[:least], strategy


def test_an_autoencoder_decodes_by_the_flags_too(programs, chain, tmp_path):
    flags = f"--eval --eval_texts 8 --decoding greedy --repetition_penalty 1.5 --output_dir {tmp_path}"
    assert programs.again("autoencoder", chain / "ae", flags) == 0
    results = json.loads((tmp_path / "evaluation" / "eval-valid.json").read_text())
    assert set(find(results, "repetition_penalty")) == {1.5}


@pytest.mark.parametrize("stage", ["diffusion", "autoencoder"])
def test_contradictory_flags_are_refused_before_anything_is_loaded(programs, chain, stage):
    run = chain / ("diff" if stage == "diffusion" else "ae")
    with pytest.raises(UserError, match="--top_k 5 and --decoding beam contradict"):
        programs.again(stage, run, "--eval --decoding beam --top_k 5")
