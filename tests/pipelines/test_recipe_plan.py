"""The recipe's choices, as a pure function of corpus, budget and machine: corpora of several kinds, small budgets and
large ones, what was typed; and the steps that fit into a time."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from dataset_utils.corpus import Corpus
from dataset_utils.registry import NOT_IN_CATALOG
from dataset_utils.splits import Split
from pipelines import probes
from pipelines.probes import Rate
from pipelines.recipe.arguments import CHOSEN
from pipelines.recipe.corpus_facts import CorpusFacts, count_sentences, measure, own_tokenizer
from pipelines.recipe.plan import (
    LAST_SHARE,
    WAYS,
    Machine,
    choose,
    choose_steps,
    encoder_of,
    minutes_needed,
    rows,
    shares,
    stage_seconds,
)
from utils.errors import UserError

CAPTIONS = CorpusFacts(texts=144_000, held_out=5_000, words=12, tokens=38, sentences=1, most_sentences=1)
STORIES = CorpusFacts(texts=18_600, held_out=200, words=45, tokens=86, sentences=5, most_sentences=5)
PAGES = CorpusFacts(texts=30_000, held_out=500, words=150, tokens=400, sentences=1, most_sentences=2)
MACHINE = Machine("smollm2", "minilm", texts_per_second=400)
SCRATCH = Machine(None, None)
HOUR = 3600.0


def values(facts, machine=MACHINE, seconds=HOUR, **given):
    return {name: choice.value for name, choice in choose(facts, machine, seconds, given).items()}


def test_short_texts_are_one_vector_and_an_mlp_generates_it():
    made = values(CAPTIONS)
    assert (made["way"], made["pooling"], made["num_sentence_latents"]) == ("pretrained", "mean", 1)
    assert (made["denoiser_variant"], made["tx_dim"], made["tx_depth"]) == ("mlp", 1024, 6)
    assert (made["denoiser_batch_size"], made["decoder_batch_size"], made["condition"]) == (512, 32, "none")
    assert made["max_seq_len"] == 40 and made["sampling_timesteps"] == 32
    assert (made["sampler"], made["time_grid"], made["top_p"]) == ("dpmpp", "karras", 0.95)
    assert values(CAPTIONS, SCRATCH)["top_p"] == 0.86, "a small model has a worse tail"
    assert "top_p" not in values(CAPTIONS, decoding="greedy")


def test_stories_have_a_vector_for_each_sentence_and_long_texts_equal_pieces():
    stories, pages = values(STORIES), values(PAGES)
    assert (stories["pooling"], stories["num_sentence_latents"]) == ("sentences", 5)
    assert (pages["pooling"], pages["num_sentence_latents"]) == ("segments", 8)
    assert stories["denoiser_variant"] == pages["denoiser_variant"] == "latent"
    assert pages["max_seq_len"] == 256  # of 400 tokens
    assert (
        shares(choose(STORIES, MACHINE, HOUR, {}))["diffusion"]
        > shares(choose(CAPTIONS, MACHINE, HOUR, {}))["diffusion"]
    )


def test_no_more_is_encoded_than_a_tenth_of_the_budget_takes():
    assert values(CAPTIONS)["max_train_texts"] == 144_000  # 400 texts/s * 360 s
    assert values(CAPTIONS, seconds=HOUR / 2)["max_train_texts"] == 72_000
    assert values(CAPTIONS, seconds=30)["max_train_texts"] == 2_000  # never fewer
    assert values(replace(CAPTIONS, texts=500))["max_train_texts"] == 500


def test_classes_and_sources_condition_the_denoiser():
    assert values(replace(CAPTIONS, classes=5))["condition"] == "class"
    assert values(replace(CAPTIONS, classes=1))["condition"] == "none"
    both = values(replace(CAPTIONS, classes=5, has_sources=True))
    assert both["condition"] == "source" and both["cls_free_guidance"] > 1
    assert values(replace(CAPTIONS, classes=5), condition="none")["condition"] == "none"


def test_a_gpu_gets_larger_batches_of_the_decoder():
    assert (
        values(CAPTIONS, replace(MACHINE, has_gpu=True))["decoder_batch_size"] > values(CAPTIONS)["decoder_batch_size"]
    )


def test_small_corpora_and_small_budgets_get_small_denoisers():
    assert values(replace(CAPTIONS, texts=5_000))["tx_dim"] < values(CAPTIONS)["tx_dim"]
    assert values(CAPTIONS, seconds=300)["tx_dim"] < values(CAPTIONS)["tx_dim"]


@pytest.mark.parametrize("machine", [SCRATCH, Machine(None, "minilm")])
def test_without_a_pretrained_language_model_everything_is_trained_on_the_texts(machine):
    choices = choose(CAPTIONS, machine, 3 * HOUR, {})
    made = {name: choice.value for name, choice in choices.items()}
    assert made["way"] == "scratch" and made["pooling"] == "mean" and "num_encoder_latents" not in made
    assert made["denoiser_variant"] == "mlp" and made["max_train_texts"] == 144_000
    assert list(shares(choices)) == ["causal_lm", "decoder", "diffusion"]
    assert made["d_model"] > values(CAPTIONS, SCRATCH, 600)["d_model"]
    stories = values(STORIES, SCRATCH)
    assert stories["pooling"] == "sentences" and stories["denoiser_variant"] == "latent"
    made = values(CAPTIONS, SCRATCH, way="autoencoder")
    assert made["num_encoder_latents"] == 16 and "pooling" not in made and made["layers"] == 3
    assert list(shares(choose(CAPTIONS, SCRATCH, HOUR, {"way": "autoencoder"}))) == ["lm", "autoencoder", "diffusion"]


def test_without_an_encoder_pooled_states_of_the_pretrained_decoder_are_the_latents():
    alone = Machine("smollm2", None, texts_per_second=400)
    choices = choose(CAPTIONS, alone, HOUR, {})
    assert choices["way"].value == "states" and choices["denoiser_variant"].value == "mlp"
    adapted = {"adapt_decoder": True}  # as the reason says: it would follow each error of a sample
    assert shares(choices) == shares(choose(CAPTIONS, MACHINE, HOUR, adapted)) and "d_model" not in choices
    assert "adapted" not in shares(choose(CAPTIONS, alone, HOUR, {"adapt_decoder": False}))
    assert choices["max_train_texts"].value == 144_000 and choices["top_p"].value == 0.96
    stories = choose(STORIES, alone, HOUR, {})
    assert stories["pooling"].value == "sentences" and stories["denoiser_variant"].value == "latent"
    assert shares(stories) == shares(choose(STORIES, MACHINE, HOUR, adapted))
    assert values(CAPTIONS, way="states")["way"] == "states", "also where there is an encoder"


def test_the_decoder_is_adapted_where_samples_mislead_it_most():
    for facts, way, adapted, top_p in (
        (CAPTIONS, "pretrained", False, 0.95),
        (CAPTIONS, "states", True, 0.96),
        (STORIES, "pretrained", True, 0.96),
        (STORIES, "scratch", True, 0.86),
        (CAPTIONS, "scratch", False, 0.86),
        (STORIES, "perceiver", False, 0.95),
        (CAPTIONS, "autoencoder", False, 0.86),
    ):
        choices = choose(facts, MACHINE, HOUR, {"way": way})
        assert choices["adapt_decoder"].value is adapted is ("adapted" in shares(choices)), (facts, way)
        assert choices["top_p"].value == top_p
    made = choose(CAPTIONS, MACHINE, HOUR, {"adapt_decoder": True})
    assert made["adapt_decoder"].given and made["top_p"].value == 0.96
    assert not choose(STORIES, MACHINE, HOUR, {"adapt_decoder": False})["adapt_decoder"].value


def test_the_model_whose_pooled_states_are_latents():
    models = ("smollm2", "minilm")
    assert encoder_of("pretrained", *models) == ("minilm", None) and encoder_of("states", *models) == ("smollm2", 2)
    assert encoder_of("scratch", *models) == encoder_of("perceiver", *models) == (None, None)


def test_an_autoencoder_and_the_pretrained_decoder_are_typed():
    choices = choose(CAPTIONS, Machine("smollm2", None), HOUR, {"way": "perceiver"})
    assert choices["denoiser_variant"].value == "mlp" and choices["num_encoder_latents"].value == 16
    assert list(shares(choices)) == ["lm", "autoencoder", "decoder", "diffusion"]
    assert "adapted" in shares(choose(CAPTIONS, SCRATCH, HOUR, {"adapt_decoder": True}))


def test_latents_of_few_numbers_get_an_mlp_and_others_a_transformer():
    for given, variant in (
        ({"num_encoder_latents": 16, "dim_ae": 64}, "mlp"),
        ({"num_encoder_latents": 32, "dim_ae": 64}, "latent"),
        ({"autoencoder_flags": "--autoencoder per_token"}, "latent"),
        ({"autoencoder_flags": "--enc_dec_model per_token_bart"}, "mlp"),
    ):
        assert values(CAPTIONS, SCRATCH, way="autoencoder", **given)["denoiser_variant"] == variant


def test_the_help_explains_every_way():
    text = CHOSEN["way"][1]
    assert [way for way in WAYS if f"{way} (" not in text] == []


def test_what_is_typed_replaces_a_choice_and_what_follows_from_it():
    made = choose(CAPTIONS, MACHINE, HOUR, {"pooling": "segments", "num_sentence_latents": 4, "tx_dim": 64})
    assert made["tx_dim"].value == 64 and made["tx_dim"].given and not made["tx_depth"].given
    assert made["num_sentence_latents"].value == 4 and made["denoiser_variant"].value == "latent"
    assert choose(STORIES, MACHINE, HOUR, {"pooling": "mean"})["num_sentence_latents"].value == 1
    adapted = shares(choose(CAPTIONS, MACHINE, HOUR, {"adapt_decoder": True}))
    assert list(adapted) == ["decoder", "diffusion", "adapted"] and sum(adapted.values()) == pytest.approx(1)


@pytest.mark.parametrize("given", [{}, {"pooling": "last"}])
def test_a_typed_number_of_vectors_is_not_dropped(given):
    with pytest.raises(UserError, match="add --pooling segments"):
        choose(CAPTIONS, MACHINE, HOUR, {"num_sentence_latents": 4, **given})
    assert choose(CAPTIONS, MACHINE, HOUR, {"num_sentence_latents": 1, **given})["num_sentence_latents"].value == 1


@pytest.mark.parametrize("facts", [CAPTIONS, STORIES, PAGES])
@pytest.mark.parametrize("machine", [MACHINE, SCRATCH])
@pytest.mark.parametrize("seconds", [30, HOUR, 24 * HOUR])
def test_every_choice_has_a_reason_and_the_shares_are_the_time(facts, machine, seconds):
    choices = choose(facts, machine, seconds, {})
    assert all(len(row) == 3 and all(row) for row in rows(choices))
    stages = shares(choices)
    left, spent = seconds, []
    for i, stage in enumerate(stages):
        spent.append(stage_seconds(stage, left, stages, list(stages)[:i]))
        left -= spent[-1]
    assert sum(spent) == pytest.approx(seconds) and min(spent) > 0


def test_a_stage_gets_what_the_stages_before_it_left():
    stages = shares(choose(CAPTIONS, MACHINE, HOUR, {}))
    assert stage_seconds("decoder", 1000, stages, ()) == pytest.approx(750)
    assert stage_seconds("diffusion", 300, stages, ("decoder",)) == 300
    assert stage_seconds("diffusion", -5, stages, ("decoder",)) == 0


def test_a_short_budget_gives_the_denoiser_more_of_its_time():
    short, long = (shares(choose(CAPTIONS, MACHINE, seconds, {})) for seconds in (1500, HOUR))
    assert short["diffusion"] > long["diffusion"] and sum(short.values()) == pytest.approx(1)
    typed = shares(choose(CAPTIONS, MACHINE, HOUR, {"denoiser_share": 0.5, "adapt_decoder": True}))
    assert typed["diffusion"] == 0.5 and sum(typed.values()) == pytest.approx(1)


def test_joint_training_takes_its_time_from_the_denoiser_and_needs_an_autoencoder():
    way = {"way": "autoencoder"}
    alone, joint = (shares(choose(CAPTIONS, SCRATCH, HOUR, {"joint": value, **way})) for value in (None, True))
    assert list(joint) == ["lm", "autoencoder", "diffusion", "joint"]
    assert sum(joint.values()) == pytest.approx(1)
    assert joint["diffusion"] + joint["joint"] == pytest.approx(alone["diffusion"]) and "joint" not in alone
    for machine in (MACHINE, Machine("smollm2", None)):
        with pytest.raises(UserError, match="--joint trains an autoencoder"):
            choose(CAPTIONS, machine, HOUR, {"joint": True})


def test_the_minutes_that_a_note_asks_for_give_the_steps():
    for rate, share, spent in ((0.5, 0.74, 100), (3.0, 1.0, 0), (0.02, 0.42, 700)):
        minutes = minutes_needed(300, rate, 10, share, spent)
        steps = [
            choose_steps(share * (60 * given - spent) * (1 - LAST_SHARE), rate, 10, 8).steps
            for given in (minutes, minutes - 1)
        ]
        assert steps[0] >= 300 > steps[1]
    assert minutes_needed(300, 0.1, 10, 1, 0, with_evaluation=True) > minutes_needed(300, 0.1, 10, 1, 0)


def test_a_model_that_is_trained_here_is_narrower_for_long_texts():
    def width(words: int, seconds: float) -> int:
        return values(replace(CAPTIONS, words=words), SCRATCH, seconds)["d_model"]

    assert [width(words, 2100) for words in (12, 20, 42)] == [256, 256, 128]
    assert width(42, 3 * 3600) == 256


def test_steps_fill_the_time_at_the_rate_of_the_probe():
    made = choose_steps(2400, 0.5, 20, 32, fewest=300)
    assert (made.steps, made.batch_size, made.warmup) == (1130, 32, 90)
    assert choose_steps(2400, 20, 0, 512).ema_decay == 0.9999
    short = choose_steps(100, 0.5, 20, 32, fewest=300)  # 40 steps: halved twice
    assert (short.steps, short.batch_size) == (85, 8)
    assert choose_steps(100, 0.5, 20, 32, fewest=300, half_batch=2).steps == 152
    assert choose_steps(100, 0.5, 20, 32, fewest=300, fixed_batch=True).steps == 38
    assert choose_steps(100, 0.5, 20, 32, fewest=300, steps=7).steps == 7
    nothing = choose_steps(0, 0.5, 20, 32)
    assert nothing.steps == 10 and 0 <= nothing.warmup < 10 and nothing.ema_decay == 0.9
    assert Rate(10, 2).steps(100) == 180 and Rate(1000, 2).steps(100) == 40


SLOW_FIRST = """
import json, sys, time
print("training: as a program does", flush=True)
for step, seconds in enumerate([5.0, 15.0, 21.0, 27.0, 33.0, 39.0], 1):
    time.sleep(0.3)
    with open(sys.argv[1], "a") as log:
        log.write(json.dumps({"step": step, "seconds": seconds}) + "\\n")
time.sleep(600)
"""


def test_a_rate_is_not_that_of_the_first_steps_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "PATIENCE", 60)  # a busy machine may be slow
    folder = tmp_path / "run.probe"
    rate = probes.probe([sys.executable, "-c", SLOW_FIRST, str(folder / "metrics.jsonl")], folder, 1.0)
    assert rate.steps_per_second == pytest.approx(5 / 34) and not folder.exists()


def test_the_facts_of_a_corpus_are_measured():
    texts = ["One cat sat. It ran! Why? It saw a dog.", "A dog ran home. It slept. It woke. It ate."] * 20
    splits = {"train": Split(texts, labels=[0, 1] * 20), "valid": Split(texts[:4]), "test": Split(texts[:4])}
    corpus = Corpus("own", splits, NOT_IN_CATALOG, class_names=("a", "b"))
    tokenizer = own_tokenizer(corpus, 400)
    facts = measure(corpus, tokenizer)
    longest = max(len(tokenizer(text)["input_ids"]) for text in texts)
    assert facts == CorpusFacts(40, 4, 10.0, longest, 4.0, 4, 2, False) and 14 <= longest <= 20
    assert "40 training texts in 2 classes" in facts.describe() and "4 sentences" in facts.describe()
    numbers = {"a cat": 1, "A. B.": 2, 'He said "no." Then he left.': 2, "好。 不。": 2, "": 1}
    numbers |= {"他說好。她說「不！」然後走了？！對。": 4, "3.5 e.g.this": 1, "他。」": 1}
    assert {text: count_sentences(text) for text in numbers} == numbers


def test_characters_of_scripts_without_blanks_count_as_words_and_as_tokens():
    """A text of Chinese would else be one word of four tokens, and be cut."""
    texts = ["".join(chr(0x4E00 + (7 * i + 13 * k) % 300) for k in range(50)) + "。" for i in range(40)]
    corpus = Corpus("own", {name: Split(texts) for name in ("train", "valid", "test")}, NOT_IN_CATALOG)
    facts = measure(corpus, own_tokenizer(corpus, 600))
    assert 50 <= facts.words <= 52 and 40 <= facts.tokens <= 53 * 3
