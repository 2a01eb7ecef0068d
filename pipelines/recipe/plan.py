"""The choices of the recipe: pure functions from a corpus, a budget, a machine and what was typed to sizes and steps.

Nothing here reads a file or a clock. The numbers come from the study of real text (docs/real-text-study.md); each
choice names its reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.recipe.corpus_facts import CorpusFacts
from pipelines.recipe.left_out import has_latent_per_token
from utils.errors import UserError

# Latents and decoder. pretrained: frozen embeddings, a pretrained language model; states: pooled states of that
# language model, and itself; perceiver: those of an autoencoder that is trained here, and the pretrained one; scratch:
# pooled states of a language model that is trained here, and itself; autoencoder: a BART and an autoencoder around it,
# both trained here.
WAYS = ("pretrained", "states", "perceiver", "scratch", "autoencoder")
PRETRAINED_WAY, STATES_WAY, PERCEIVER_WAY, SCRATCH_WAY, AUTOENCODER_WAY = WAYS
POOLED = (PRETRAINED_WAY, STATES_WAY, SCRATCH_WAY)  # ways whose latents are pooled states of a model that stays frozen
TRAINED_HERE = (SCRATCH_WAY, AUTOENCODER_WAY)  # ways without anything pretrained
SHORT_TEXT = 40  # words: one vector of a sentence encoder holds about so much
WORDS_OF_WIDTH = 20  # of a text: a step with longer ones lasts longer, and leaves a wide model too few
MOST_VECTORS = 16
POOLED_LAYER = 2  # of a language model, or its last one: the states that are latents; texts of layer 0 differ more
ENCODING_SHARE = 0.1  # of the budget, at most, for encoding the texts
OWN_SPEED = {False: 400.0, True: 8_000.0}  # on a GPU? -> texts/s that a language model trained here encodes, roughly
FEWEST_TEXTS = 2_000  # to encode, whatever the budget
FEWEST_STEPS = 300  # of a decoder: below that its batch is halved, and texts do not follow their latents
EVALUATION_SHARE = 0.15  # of the budget, if evaluation counts
MOST_EVALUATION = 0.5  # of the budget, that the evaluation takes beside it, unless its size is typed
SAFETY = 0.95  # of the time of a stage: what ends early goes to the next one, what is late ends at a high learning rate
LAST_SHARE = 0.07  # of a stage, for its last evaluation
WARMUP_SHARE = 0.08  # of the steps of a stage, at most 100 of them
SHORT_BUDGET = 2400.0  # seconds
HALF_BATCH = 1.5  # times the rate: a step of half as many texts lasts longer than half of it (an MLP from 512 to 64)
SMALL_CORPUS = 20_000  # texts


@dataclass(frozen=True)
class Choice:
    """A value and why it was chosen; given: it was typed."""

    value: Any
    reason: str
    given: bool = False


@dataclass(frozen=True)
class Machine:
    """What the models are, and how fast this machine encodes."""

    language_model: str | None  # folder or hub id; None: nothing pretrained
    encoder_model: str | None
    texts_per_second: float = 0.0  # that the model encodes whose pooled states are latents
    has_gpu: bool = False


Choices = dict[str, Choice]
# The stages of each way, and their shares of the time that is left after encoding.
SHARES = {
    (PRETRAINED_WAY, "one"): {"decoder": 0.8, "diffusion": 0.2},
    (PRETRAINED_WAY, "several"): {"decoder": 0.66, "diffusion": 0.34},
    (STATES_WAY, "one"): {"decoder": 0.8, "diffusion": 0.2},
    (STATES_WAY, "several"): {"decoder": 0.66, "diffusion": 0.34},
    (PERCEIVER_WAY, "several"): {"lm": 0.12, "autoencoder": 0.2, "decoder": 0.42, "diffusion": 0.26},
    (SCRATCH_WAY, "one"): {"causal_lm": 0.4, "decoder": 0.4, "diffusion": 0.2},
    (SCRATCH_WAY, "several"): {"causal_lm": 0.35, "decoder": 0.35, "diffusion": 0.3},
    (AUTOENCODER_WAY, "several"): {"lm": 0.2, "autoencoder": 0.5, "diffusion": 0.3},
}
ADAPTED_STAGE = {  # way -> the stage whose time is shared with the adaptation of the decoder, and the part taken
    PRETRAINED_WAY: ("decoder", 0.2),
    STATES_WAY: ("decoder", 0.2),
    PERCEIVER_WAY: ("decoder", 0.2),
    SCRATCH_WAY: ("decoder", 0.2),
    AUTOENCODER_WAY: ("diffusion", 0.5),
}
JOINT_PART = 0.4  # of the time of the denoiser, for training it together with the autoencoder
ORDER = ("causal_lm", "lm", "autoencoder", "decoder", "diffusion", "joint", "adapted")

_LIKELY = "the decoder draws likely words alone; 1 is as diverse as it gets, and less fluent"
NUCLEUS = {  # of a decoder -> top_p and reason
    "adapted": (0.96, _LIKELY),
    "pretrained": (0.95, _LIKELY),
    "trained here": (0.86, "what a small model finds unlikely is often no word"),
}
MOST_FLAT = 1024  # numbers of a latent that a residual MLP reads at once
_ALL_HERE = "no pretrained language model: one is trained here, whose pooled states are latents, and which decodes them"
WAY_OF_MODELS = {  # (is there a language model, is there an encoder) -> way and reason
    (True, True): (PRETRAINED_WAY, "frozen sentence embeddings, and a pretrained language model that decodes them"),
    (True, False): (STATES_WAY, "no encoder: latents are pooled states of the language model, which decodes them, too"),
    (False, True): (SCRATCH_WAY, _ALL_HERE),
    (False, False): (SCRATCH_WAY, _ALL_HERE),
}


def way_of(language_model: str | None, encoder_model: str | None) -> tuple[str, str]:
    """The way and its reason; each model is a folder, a hub id, or None."""
    return WAY_OF_MODELS[language_model is not None, encoder_model is not None]


def encoder_of(way: str, language_model: str | None, encoder_model: str | None) -> tuple[str | None, int | None]:
    """The pretrained model whose pooled states are latents, and which layer's (None: the last one's); None of a way
    whose latents are of a model that is trained here.
    """
    encoders = {PRETRAINED_WAY: (encoder_model, None), STATES_WAY: (language_model, POOLED_LAYER)}
    return encoders.get(way, (None, None))


class _Maker:
    """Collects choices; one that was typed replaces ours."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given, self.made = given, Choices()

    def __call__(self, name: str, value: Any, reason: str) -> Any:
        if self.given.get(name) is not None:
            self.made[name] = Choice(self.given[name], "as typed", given=True)
        else:
            self.made[name] = Choice(value, reason)
        return self.made[name].value


def choose(facts: CorpusFacts, machine: Machine, seconds: float, given: Mapping[str, Any]) -> Choices:
    """Every choice but the numbers of steps. given: name -> value of what was typed; None is not typed.

    Raises UserError for a stage that the way does not have.
    """
    make = _Maker(given)
    way = make("way", *way_of(machine.language_model, machine.encoder_model))
    limit = 256 if way in POOLED else 128
    length = min(limit, 8 * math.ceil(max(16, facts.tokens) / 8))
    make("max_seq_len", length, f"99 of 100 texts have at most {facts.tokens} tokens")
    _choose_condition(make, facts)
    if way in POOLED:
        _choose_space(make, facts)
        speed = OWN_SPEED[machine.has_gpu] if way == SCRATCH_WAY else machine.texts_per_second
        _choose_texts(make, facts, speed, seconds)
    else:
        make("max_train_texts", facts.texts, "every text: the stages read them as they go")
    if way not in (PRETRAINED_WAY, STATES_WAY):
        _choose_small_models(make, facts, seconds, way)
    make("adapt_decoder", *_adapts(make, way))
    _choose_denoiser(make, facts, seconds, way)
    _choose_denoiser_share(make, seconds, way)
    if way != AUTOENCODER_WAY:
        batch, where = (128, "a GPU computes many texts at once; ") if machine.has_gpu else (32, "")
        make("decoder_batch_size", batch, f"{where}halved until {FEWEST_STEPS} steps fit into the time of the decoder")
    if way == AUTOENCODER_WAY:
        make("joint", False, "latents stay as they are: each text is encoded once")
    elif given.get("joint"):
        raise UserError(
            f"--joint trains an autoencoder with its denoiser, and latents of --way {way} stay as they are, since a "
            "language model decodes them that does not train with it: add --way autoencoder, or leave --joint out"
        )
    return make.made


def _choose_condition(make: _Maker, facts: CorpusFacts) -> None:
    if facts.has_sources:
        make("condition", "source", "the texts have sources: the denoiser reads them")
    elif facts.classes > 1:
        make("condition", "class", f"the texts have {facts.classes} classes")
    else:
        make("condition", "none", "the texts have neither classes nor sources")


def _choose_space(make: _Maker, facts: CorpusFacts) -> None:
    if facts.sentences >= 3:
        pooling, number = "sentences", min(MOST_VECTORS, max(2, facts.most_sentences))
        why = f"a text has {facts.sentences:g} sentences: one vector each"
        how_many = f"19 of 20 texts have at most {facts.most_sentences} sentences; what is beyond joins the last"
    elif facts.words > SHORT_TEXT:
        pooling, number = "segments", min(MOST_VECTORS, math.ceil(facts.words / (SHORT_TEXT / 2)))
        why = f"a text has {facts.words:g} words and few sentences: equal pieces"
        how_many = f"one vector for about {SHORT_TEXT // 2} words"
    else:
        pooling, number = "mean", 1
        why = f"short texts ({facts.words:g} words, {facts.sentences:g} sentence): one vector holds them"
        how_many = "the mean over the tokens"
    pooling = make("pooling", pooling, why)
    if pooling in ("mean", "first", "last"):
        typed = make.given.get("num_sentence_latents") or 1
        if typed != 1:
            raise UserError(
                f"--num_sentence_latents {typed}, and --pooling {pooling} makes one vector of a text: add --pooling "
                "segments, or leave it out"
            )
        make.made["num_sentence_latents"] = Choice(1, f"--pooling {pooling} makes one vector")
    else:
        make("num_sentence_latents", max(2, number), how_many)


def _choose_texts(make: _Maker, facts: CorpusFacts, speed: float, seconds: float) -> None:
    """speed: texts a second that are encoded."""
    affordable = int(speed * seconds * ENCODING_SHARE)
    number = min(facts.texts, max(FEWEST_TEXTS, affordable // 1000 * 1000))
    encoding = number / max(speed, 1e-9)
    make(
        "max_train_texts",
        number,
        ("every text" if number == facts.texts else f"of {facts.texts:,}")
        + f": encoding takes about {encoding / 60:.1f} min at {speed:.0f} texts/s, at most a tenth "
        "of the budget",
    )


def vocabulary(texts: int) -> int:
    """Tokens of a language model that is trained on so many texts."""
    return 2000 if texts < 5_000 else 4000


def _choose_small_models(make: _Maker, facts: CorpusFacts, seconds: float, way: str) -> None:
    """Sizes of what is trained here by the budget: a step of a larger model, or with longer texts, takes longer."""
    time_of_width = seconds * min(1.0, WORDS_OF_WIDTH / max(facts.words, 1))
    width, layers = (128, 2) if time_of_width < 1800 else (256, 3) if time_of_width < 8 * 3600 else (384, 4)
    make("d_model", width, f"the language model of {seconds / 60:g} minutes, with texts of {facts.words:g} words")
    make("vocab_size", vocabulary(facts.texts), f"{facts.texts:,} texts")
    if way == SCRATCH_WAY:
        make("layers", 2 * layers, "of the causal language model")
        return
    make("layers", layers, "of the encoder of the BART, and of its decoder")
    latents = 16 if facts.words <= SHORT_TEXT else 32
    make("num_encoder_latents", latents, f"texts of {facts.words:g} words; few latents are robust to sampling errors")
    make("dim_ae", 32, "narrow latents are easier to generate")


def has_one_vector(choices: Mapping[str, Choice]) -> bool:
    """Whether the latent of a text is one vector."""
    return bool(choices["way"].value in POOLED and choices["num_sentence_latents"].value == 1)


def _number(choices: Mapping[str, Choice]) -> str:
    """A key of SHARES."""
    return "one" if has_one_vector(choices) else "several"


def _choose_denoiser_share(make: _Maker, seconds: float, way: str) -> None:
    if way in (PRETRAINED_WAY, STATES_WAY) and has_one_vector(make.made):
        short = seconds < SHORT_BUDGET
        why = "below some hundred steps it knows no latents" if short else "samples get better with its loss"
        make("denoiser_share", 0.26 if short else 0.25, f"part of the time after encoding; {why}")
    else:
        make("denoiser_share", SHARES[way, _number(make.made)]["diffusion"], "part of the training time")


def _choose_denoiser(make: _Maker, facts: CorpusFacts, seconds: float, way: str) -> None:
    needs_words = make.made["condition"].value == "source"
    variant = make("denoiser_variant", *_variant(make, way))
    small = facts.texts < SMALL_CORPUS or seconds < 600
    why = f"{facts.texts:,} texts" if facts.texts < SMALL_CORPUS else f"{seconds / 60:g} minutes"
    if variant == "mlp":
        make("tx_dim", 512 if small else 1024, why)
        make("tx_depth", 4 if small else 6, why)
        make(
            "denoiser_batch_size",
            256 if small else 512,
            "a step of an MLP is cheap, its gradient noisy; halved below 800 steps",
        )
        rate = 2e-3 if has_one_vector(make.made) else 1e-3
        make("denoiser_learning_rate", rate, "with a cosine schedule")
    else:
        large = way in POOLED or seconds >= 1800
        width = make("tx_dim", 384 if large and not small else 192, why)
        make("tx_depth", 6 if large else 4, why)
        make("denoiser_batch_size", 128 if large else 64, "texts a step; halved below 800 steps")
        if way in POOLED and width >= 384:
            make("denoiser_learning_rate", 5e-4, "with the linear denoiser a wide transformer stalls at 1e-3")
        else:
            make("denoiser_learning_rate", 1e-3, "with a cosine schedule")
    make("sampling_timesteps", 32, "steps of the sampler: more changes little")
    make("sampler", "dpmpp", "of second order: nearer to the latents of texts than ddpm in as many steps")
    make("time_grid", "karras", "more steps where there is little noise")
    decoding = make("decoding", "nucleus", "texts of one latent differ, as those of people do")
    if decoding == "nucleus":
        adapted = "adapted" if make.made["adapt_decoder"].value else "pretrained"
        make("top_p", *NUCLEUS["trained here" if way in TRAINED_HERE else adapted])
    guidance = 1.5 if needs_words else 1.0
    make("cls_free_guidance", guidance, "a source is followed more closely" if needs_words else "no guidance")


def _adapts(make: _Maker, way: str) -> tuple[bool, str]:
    """Whether the decoder is adapted to the denoiser, and the reason."""
    if way == STATES_WAY:
        return True, "states hold nearly every word of a text, and the decoder would follow each error of a sample"
    if way in POOLED and not has_one_vector(make.made):
        return True, "vectors of a sample agree less than those of a text, and the decoder learns to make up for it"
    return False, "states and several pooled vectors gain from it, other latents did not"


def _variant(make: _Maker, way: str) -> tuple[str, str]:
    """The denoiser and the reason."""
    if way in POOLED:
        if make.made["num_sentence_latents"].value == 1:
            return "mlp", "one vector: a residual MLP"
        return "latent", "several vectors: a transformer over them"
    if has_latent_per_token(make.given):
        return "latent", "a latent for each token: a transformer over them"
    numbers = make.made["num_encoder_latents"].value * make.made["dim_ae"].value
    if numbers <= MOST_FLAT:
        return "mlp", f"{numbers:,} numbers in all: a residual MLP over all latents at once"
    return "latent", f"{numbers:,} numbers: a transformer over the latents"


def shares(choices: Choices) -> dict[str, float]:
    """The stages in their order, each with its share of the time that is left for training."""
    found = dict(SHARES[choices["way"].value, _number(choices)])
    share = float(choices["denoiser_share"].value)
    others = (1 - share) / (1 - found["diffusion"])
    found = {name: share if name == "diffusion" else others * part for name, part in found.items()}
    if choices["adapt_decoder"].value:
        stage, part = ADAPTED_STAGE[choices["way"].value]
        found["adapted"] = part * found[stage]
        found[stage] -= found["adapted"]
    if "joint" in choices and choices["joint"].value:
        found["joint"] = JOINT_PART * found["diffusion"]
        found["diffusion"] -= found["joint"]
    return {name: found[name] for name in ORDER if name in found}


def stage_seconds(stage: str, left: float, stages: Mapping[str, float], done: Sequence[str]) -> float:
    """The seconds of a stage: its part of those left, which are divided among the stages that are not done."""
    total = sum(share for name, share in stages.items() if name not in done)
    return max(0.0, left) * stages[stage] / total


def minutes_needed(
    fewest: int, rate: float, started: float, share: float, spent: float, *, with_evaluation: bool = False
) -> int:
    """Whole minutes of a budget in which a stage makes `fewest` steps at a probed rate (steps/s).

    started: seconds until its first step. share: of the time that is left, which the stage gets. spent: seconds that
    are not left. with_evaluation: the budget contains the evaluation, too.
    """
    stage = (started + fewest / (SAFETY * max(rate, 1e-9))) / (1 - LAST_SHARE)
    trained = 1 - EVALUATION_SHARE if with_evaluation else 1.0
    return math.ceil((spent + stage / share) / (60 * trained))


@dataclass(frozen=True)
class Steps:
    """The length of a stage. What depends on the number of steps is decided with it."""

    steps: int
    batch_size: int
    warmup: int
    ema_decay: float
    seconds: float  # of the stage
    steps_per_second: float

    def record(self) -> dict[str, Any]:
        return asdict(self)


def choose_steps(
    seconds: float,
    rate: float,
    started: float,
    batch_size: int,
    *,
    fewest: int = 0,
    least_batch: int = 8,
    steps: int | None = None,
    fixed_batch: bool = False,
    half_batch: float = HALF_BATCH,
) -> Steps:
    """The steps that fit into the seconds of a stage at a probed rate (steps/s with batch_size texts).

    started: seconds until the first step. fewest: with fewer steps the batch is halved, down to least_batch texts;
    fixed_batch: it stays. half_batch: times the rate, with half as many texts. steps: typed, and then kept.
    """
    time = SAFETY * max(0.0, seconds - min(started, 0.8 * seconds))
    while steps is None and not fixed_batch and batch_size >= 2 * least_batch and rate * time < fewest:
        batch_size, rate = batch_size // 2, rate * half_batch
    number = steps if steps is not None else max(10, int(rate * time))
    decay = min(0.9999, max(0.9, 1 - 1.2 / max(1, number)))
    return Steps(number, batch_size, int(min(100, WARMUP_SHARE * number)), round(decay, 5), seconds, rate)


def rows(choices: Choices) -> list[list[str]]:
    """The table of choices: name, value, reason."""
    return [[name, _shown(choice.value), choice.reason] for name, choice in choices.items()]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
