"""Texts with blanks: the given text stays as typed in every latent space, whatever it contains."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_utils.characters import apply_rules
from latent_models.generation.infilling import visible_tokens
from latent_models.tokenizers.training import train_tokenizer
from pipelines.data.tokens import tokenizer_of
from pipelines.infill import main as infill_program
from pipelines.sampling.blanks import BLANK, parse_blanks
from pipelines.text_diffusion import TextDiffusionPipeline
from utils.errors import UserError

WORDS = [
    "apple", "Apple", "went", "to", "the", "Zebedee", "naïve", "ﬁne", "東京", "don't", "don’t", ".", " .", "?!", "ß",
    "e\u0301", "मा", "a\u00a0b", "a\u200db", "</s>", "<unk>", "[MASK]", "__", "[blank", "##ing", "\t", "  ", "-", "🙂",
]  # fmt: skip
LETTERS = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=4)  # control codes are left out before
PIECES = st.lists(st.sampled_from(WORDS) | LETTERS, max_size=5).flatmap(
    lambda words: st.sampled_from(["", " "]).map(lambda space: space.join(words))
)
BLANKS = st.sampled_from(["___", "[blank]", "[blank:2]", "_____", " ___ ", "___ ___", "___[blank:2]", "[blank:3]"])


@st.composite
def blank_texts(draw):
    """A text as a user may type it, with one or more blanks."""
    text = draw(PIECES)
    for _ in range(draw(st.integers(1, 3))):
        text += draw(BLANKS) + draw(PIECES)
    return text if BLANK.search(text) else text + "___"


def is_kept(text: str, filled: str) -> bool:
    """Whether a filled text is the given one with something visible at each blank; adjacent blanks are one."""
    given = [part for part in re.split(r"((?:_{3,}|\[blank(?::\d{1,3})?\])+)", text)]
    pattern = "".join(re.escape(part) if i % 2 == 0 else r"\S(?:.*?\S)??" for i, part in enumerate(given))
    return re.fullmatch(pattern, filled, re.DOTALL) is not None


@pytest.fixture(scope="module")
def runs(programs, chain, tmp_path_factory):
    root = tmp_path_factory.mktemp("infilling")
    flags = "--latent_space embeddings --embedding_dim 16 --timesteps 20"
    for name, more in (("masked", ""), ("generated", "--padding generated"), ("bytes", "--vocab byte-level")):
        assert programs.diffusion(flags, root / name, more) == 0
    return {name: root / name for name in ("masked", "generated", "bytes")} | {
        "compressed": chain / "diff",
        "states": chain / "states",
    }


@pytest.fixture(scope="module")
def pipelines(runs):
    return {name: TextDiffusionPipeline.from_pretrained(run, device="cpu", sampling_timesteps=2, eval_batch_size=8)
            for name, run in runs.items()}  # fmt: skip


@pytest.mark.parametrize("name", ["masked", "generated", "bytes", "compressed", "states"])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_given_text_stays_as_typed(pipelines, name, data):
    pipeline, texts = pipelines[name], ["the ___ plum ."]
    tokenizer = tokenizer_of(pipeline.generator.space.space)
    for text in data.draw(st.lists(blank_texts(), min_size=6, max_size=6)):
        try:
            parse_blanks(tokenizer, text, pipeline.generator.max_length, 0)
            texts.append(text)
        except UserError as error:
            assert "tokens, and this run allows" in str(error)
    rows = pipeline.infill(texts, 2)
    for text, samples in zip(texts, rows, strict=True):
        assert len(samples) == 2
        for sample in samples:
            # signs that no reader keeps, such as a byte order mark, are removed from typed texts, too
            assert is_kept(apply_rules(text)[0], sample), (text, sample)


@pytest.mark.parametrize("kind", ["word", "bpe"])
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=blank_texts(), seed=st.integers(0, 999))
def test_any_tokens_at_the_blanks_leave_the_rest_as_typed(tokenizers, kind, text, seed):
    tokenizer = tokenizers[kind]
    parsed = parse_blanks(tokenizer, text, 10_000, tokenizer.unk_token_id)
    assert len(parsed.ids) == len(parsed.known) and len(parsed.pieces) == len(parsed.blanks) + 1
    assert [i for i, known in enumerate(parsed.known) if not known] == [i for blank in parsed.blanks for i in blank]
    visible = visible_tokens(tokenizer, len(tokenizer)).nonzero()[:, 0]
    draws = torch.randint(len(visible), (len(parsed.ids),), generator=torch.Generator().manual_seed(seed))
    assert is_kept(text, parsed.splice(tokenizer, visible[draws].tolist()))


@pytest.fixture(scope="module")
def tokenizers():
    texts = ["The dog ran home without hesitation.", "A cat sat down, and it slept all day!"] * 4
    return {kind: train_tokenizer(texts, kind, 300, 64) for kind in ("word", "bpe")}


@pytest.mark.parametrize(("text", "filled"), [
    ("it went ___ without hesitation .", "it went home without hesitation ."),
    ("A Zyx___ ran", "A Zyxhome ran"),
    ("___", "home"),
    ("The [blank:2]!", "The home home!"),
    ("___ ___", "home home"),
    ("___[blank]", "home home"),
    ("NO,___,YES", "NO,home,YES"),
])  # fmt: skip
def test_words_are_spelled_in_their_place(tokenizers, text, filled):
    tokenizer = tokenizers["word"]
    parsed = parse_blanks(tokenizer, text, 40, tokenizer.unk_token_id)
    home = tokenizer("home", add_special_tokens=False)["input_ids"]
    assert parsed.splice(tokenizer, home * len(parsed.ids)) == filled


def test_samples_of_latents_differ_and_strength_is_checked(pipelines):
    text = "One ___ morning [blank:2] ran to the ___."
    (rows,) = pipelines["compressed"].infill([text], 6, strength=1.0)
    assert len(set(rows)) > 1 and all(is_kept(text, row) for row in rows)
    assert pipelines["compressed"].infill([text], 6, strength=1.0) == [rows]
    with pytest.raises(UserError, match="give a time in"):
        pipelines["states"].infill([text], strength=2)
    with pytest.raises(UserError, match="leave it out"):
        pipelines["masked"].infill([text], strength=0.5)


@pytest.mark.parametrize("name", ["masked", "compressed"])
def test_the_program_prints_the_given_text_and_names_unknown_words(runs, name, capsys):
    text = "The Qwyjibo ___ went  home\u00a0now without hesitation ."
    flags = f"--run {runs[name]} --device cpu --num_samples 2 --sampling_timesteps 2 --eval_batch_size 8"
    assert infill_program([*flags.split(), "--text", text]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and all(is_kept(text, line) for line in out.splitlines())
    if name == "masked":
        assert [
            line for line in err.splitlines() if line.startswith("note: the run does not know") and "Qwyjibo" in line
        ]


@pytest.mark.parametrize(("text", "message"), [
    ("no gap", "has no blank"), ("___ " * 60, "has 62 tokens"), ("[blank:0]", "has no tokens to fill"), (" ", "blank"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["masked", "compressed", "states"])
def test_what_cannot_be_filled_is_refused_in_one_line(pipelines, name, text, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        pipelines[name].infill([text])
    assert "\n" not in str(caught.value)
