"""The judge of classes: a small one trained on a corpus, or one of the Hugging Face kind with classes of its own."""

from __future__ import annotations

import json

import pytest
import torch

from evaluation import classifiers, local_classifier
from evaluation.classifiers import NO_CLASS
from utils.errors import UserError

NAMES = ("animal", "weather")
ANIMALS = [f"The {a} {d} in the {p}." for a in ("dog", "cat", "hen") for d in ("slept", "ate") for p in ("hut", "yard")]
SKIES = [f"It {v} all {t} in the {p}." for v in ("rained", "snowed") for t in ("day", "night") for p in ("hut", "yard")]
TEXTS, LABELS = ANIMALS + SKIES, [0] * len(ANIMALS) + [1] * len(SKIES)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier") / "home"
    return local_classifier.train_local(TEXTS, LABELS, NAMES, folder, held_out=(TEXTS[::3], LABELS[::3]))


def test_a_home_classifier_tells_its_classes_apart(home):
    judge = classifiers.load(home, NAMES)
    assert judge.judge(["A cat ate.", "It snowed in the yard.", " ", ""]) == [0, 1, NO_CLASS, NO_CLASS]
    found = judge.accuracy([*TEXTS, ""], [*LABELS, 0])
    assert found["n"] == len(TEXTS) + 1 and found["by_class"]["weather"] == 1
    assert found["accuracy"] == pytest.approx(len(TEXTS) / (len(TEXTS) + 1))  # an empty text is of no class


def test_it_is_saved_with_what_it_learned_from(home):
    facts = json.loads((home / local_classifier.FACTS).read_text())
    assert facts["comparable"] is False and facts["class_names"] == list(NAMES)
    assert facts["held_out"]["accuracy"] == 1 and facts["held_out"]["n"] == len(TEXTS[::3])
    protocol = classifiers.load(home, NAMES).protocol()
    assert protocol["name"] == "home" and "trained on this corpus" in protocol["note"]


def test_the_same_corpus_gives_the_same_classifier_and_another_one_another(home, tmp_path):
    before = (home / local_classifier.WEIGHTS).stat().st_mtime_ns
    assert local_classifier.train_local(TEXTS, LABELS, NAMES, home, held_out=(TEXTS[::3], LABELS[::3])) == home
    assert (home / local_classifier.WEIGHTS).stat().st_mtime_ns == before, "trained again though it was there"
    again = local_classifier.train_local(TEXTS, LABELS, NAMES, tmp_path / "again")
    other = local_classifier.train_local(TEXTS, LABELS, NAMES, tmp_path / "other", strictness=0.1)
    prints = [classifiers.load(folder, NAMES).fingerprint for folder in (home, again, other)]
    assert prints[0] == prints[1] != prints[2]
    local_classifier.train_local(SKIES + ANIMALS, [0] * len(SKIES) + [1] * len(ANIMALS), NAMES, tmp_path / "again")
    assert classifiers.load(tmp_path / "again", NAMES).judge(["A cat ate."]) == [1], "replaced by that of the new texts"


def test_the_optimum_is_reached(home):
    """At the minimum of a penalised likelihood the biases' gradient is nought: mean probabilities are the shares."""
    model = local_classifier.load_local(home)
    shares = model(TEXTS).softmax(1).mean(0)
    torch.testing.assert_close(shares[1], torch.tensor(len(SKIES) / len(TEXTS)), atol=1e-3, rtol=0)
    alone = model([TEXTS[0]])
    torch.testing.assert_close(alone[0], model(TEXTS)[0])  # of no influence on each other
    torch.testing.assert_close(model(["xyzzy"])[0], model.bias)


def test_mistakes_are_said_in_one_line(home, tmp_path):
    with pytest.raises(UserError, match="two classes at least"):
        local_classifier.train_local(ANIMALS, [0] * len(ANIMALS), NAMES, tmp_path / "one")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="something other than a classifier"):
        local_classifier.train_local(TEXTS, LABELS, NAMES, tmp_path / "taken")
    assert (tmp_path / "taken" / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match="knows the classes animal, weather, and the corpus has sports, world"):
        classifiers.load(home, ("sports", "world"))
    with pytest.raises(UserError, match="no such folder"):
        classifiers.load("./nowhere", NAMES)
    with pytest.raises(UserError, match="cannot be loaded"):
        classifiers.load("nobody/nothing", NAMES)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, home_folder):
    """A sequence classifier of GPT-2's layout that says `Weather` to everything, as a folder."""
    from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(home_folder)
    tokenizer.pad_token = tokenizer.eos_token
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=1, pad_token_id=tokenizer.eos_token_id,
        id2label={0: "Weather", 1: "ANIMAL"}, label2id={"Weather": 0, "ANIMAL": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(config)
    folder = tmp_path_factory.mktemp("pretrained") / "judge"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_pretrained_classifier_is_matched_by_its_names(pretrained):
    judge = classifiers.load(pretrained, NAMES)
    turned = classifiers.load(pretrained, NAMES[::-1])
    texts = [*TEXTS, "long " * 200]
    found = judge.judge(texts)
    assert judge.name == "judge" and not judge.home and set(found) <= {0, 1}
    assert turned.judge(texts) == [1 - c for c in found]
    assert judge.judge(texts[::-1]) == found[::-1], "neither order nor padding decides"
    with pytest.raises(UserError, match="knows the classes Weather, ANIMAL, and the corpus has a, b"):
        classifiers.load(pretrained, ("a", "b"))
    assert classifiers.load(pretrained, ("0", "1")).judge(texts) == turned.judge(texts)  # numbers: by number
