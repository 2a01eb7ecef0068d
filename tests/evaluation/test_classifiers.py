"""Classifiers: the local one, trained on a corpus, and pretrained ones of Hugging Face with other class names."""

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
def local_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier") / "local"
    return local_classifier.train_local(TEXTS, LABELS, NAMES, folder, held_out=(TEXTS[::3], LABELS[::3]))


def test_the_local_classifier_separates_its_classes(local_folder):
    classifier = classifiers.load(local_folder, NAMES)
    assert classifier.predict(["A cat ate.", "It snowed in the yard.", " ", ""]) == [0, 1, NO_CLASS, NO_CLASS]
    found = classifier.accuracy([*TEXTS, ""], [*LABELS, 0])
    assert found["n"] == len(TEXTS) + 1 and found["by_class"]["weather"] == 1
    assert found["accuracy"] == pytest.approx(len(TEXTS) / (len(TEXTS) + 1))  # an empty text has no class


def test_its_folder_records_class_names_and_held_out_accuracy(local_folder):
    metadata = json.loads((local_folder / local_classifier.INFO_FILE).read_text())
    assert metadata["comparable"] is False and metadata["class_names"] == list(NAMES)
    assert metadata["held_out"]["accuracy"] == 1 and metadata["held_out"]["n"] == len(TEXTS[::3])
    protocol = classifiers.load(local_folder, NAMES).protocol()
    assert protocol["name"] == "local_classifier" and "trained on this corpus" in protocol["note"]


def test_training_is_deterministic_and_repeated_only_for_other_texts(local_folder, tmp_path):
    before = (local_folder / local_classifier.WEIGHTS).stat().st_mtime_ns
    assert (
        local_classifier.train_local(TEXTS, LABELS, NAMES, local_folder, held_out=(TEXTS[::3], LABELS[::3]))
        == local_folder
    )
    assert (local_folder / local_classifier.WEIGHTS).stat().st_mtime_ns == before, "trained again though it was there"
    again = local_classifier.train_local(TEXTS, LABELS, NAMES, tmp_path / "again")
    other = local_classifier.train_local(TEXTS, LABELS, NAMES, tmp_path / "other", C=0.1)
    prints = [classifiers.load(folder, NAMES).fingerprint for folder in (local_folder, again, other)]
    assert prints[0] == prints[1] != prints[2]
    local_classifier.train_local(SKIES + ANIMALS, [0] * len(SKIES) + [1] * len(ANIMALS), NAMES, tmp_path / "again")
    assert classifiers.load(tmp_path / "again", NAMES).predict(["A cat ate."]) == [1], (
        "replaced by that of the new texts"
    )


def test_the_optimum_is_reached(local_folder):
    """At the optimum of a penalized likelihood the bias gradient is 0: mean probabilities are the class frequencies."""
    model = local_classifier.load_local(local_folder)
    shares = model(TEXTS).softmax(1).mean(0)
    torch.testing.assert_close(shares[1], torch.tensor(len(SKIES) / len(TEXTS)), atol=1e-3, rtol=0)
    alone = model([TEXTS[0]])
    torch.testing.assert_close(alone[0], model(TEXTS)[0])  # texts of a batch do not affect each other
    torch.testing.assert_close(model(["xyzzy"])[0], model.bias)


def test_errors_name_the_cause(local_folder, tmp_path):
    with pytest.raises(UserError, match="fewer than two classes"):
        local_classifier.train_local(ANIMALS, [0] * len(ANIMALS), NAMES, tmp_path / "one")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="something other than a classifier"):
        local_classifier.train_local(TEXTS, LABELS, NAMES, tmp_path / "taken")
    assert (tmp_path / "taken" / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match="has the classes animal, weather, but the corpus has sports, world"):
        classifiers.load(local_folder, ("sports", "world"))
    with pytest.raises(UserError, match="no such folder"):
        classifiers.load("./nowhere", NAMES)
    with pytest.raises(UserError, match="cannot be loaded"):
        classifiers.load("nobody/nothing", NAMES)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, local_lm_folder):
    """The folder of a sequence classifier with GPT-2's layout, random weights and other class names."""
    from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(local_lm_folder)
    tokenizer.pad_token = tokenizer.eos_token
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=1, pad_token_id=tokenizer.eos_token_id,
        id2label={0: "Weather", 1: "ANIMAL"}, label2id={"Weather": 0, "ANIMAL": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(config)
    folder = tmp_path_factory.mktemp("pretrained") / "pretrained"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_classes_are_matched_by_their_exact_names_first():
    """Names that differ in their signs alone are one without them, and then no match."""
    assert classifiers._match_classes({0: "1", 1: "0", 2: "-1"}, ("-1", "0", "1"), "it") == [2, 1, 0]
    assert classifiers._match_classes({0: "C++", 1: "C"}, ("C", "C++"), "it") == [1, 0]
    assert classifiers._match_classes({0: "C plus", 1: "Java"}, ("java", "c_plus"), "it") == [1, 0]
    assert classifiers._match_classes({0: "LABEL_0", 1: "LABEL_1"}, ("-1", "1"), "it") == [0, 1]
    with pytest.raises(UserError, match=r"has the classes C, Java, but the corpus has C\+\+, C#"):
        classifiers._match_classes({0: "C", 1: "Java"}, ("C++", "C#"), "it")


def test_outputs_of_a_pretrained_classifier_are_matched_to_classes_by_name(pretrained):
    classifier = classifiers.load(pretrained, NAMES)
    turned = classifiers.load(pretrained, NAMES[::-1])
    texts = [*TEXTS, "long " * 200]
    found = classifier.predict(texts)
    assert classifier.name == "pretrained" and not classifier.is_local and set(found) <= {0, 1}
    assert turned.predict(texts) == [1 - c for c in found]
    assert classifier.predict(texts[::-1]) == found[::-1], "order and padding must not matter"
    with pytest.raises(UserError, match="has the classes Weather, ANIMAL, but the corpus has a, b"):
        classifiers.load(pretrained, ("a", "b"))
    assert classifiers.load(pretrained, ("0", "1")).predict(texts) == turned.predict(texts)  # numbers: by number
