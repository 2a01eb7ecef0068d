"""The synthetic stories: every generated text is parsed, and no other text is."""

from __future__ import annotations

import json
import math
import random
import re
from itertools import product

import pytest

from dataset_utils import synthetic_stories
from dataset_utils.story_grammar import CONTENT, FRAMES, HEROES, KIN
from utils.errors import UserError

ROSA = (
    "One foggy evening Rosa hurried to the lighthouse. She noticed a shiny pearl there. "
    "Proudly she showed it to her grandmother. She laughed and hugged her."
)
ROSA_ROUND = (
    "Rosa hurried to the lighthouse one foggy evening. There she noticed a shiny pearl. "
    "She proudly showed it to her grandmother. She hugged her and laughed."
)


def some_stories(n: int, seed: int = 0) -> list[synthetic_stories.Story]:
    rng = random.Random(seed)
    return [synthetic_stories.sample_story(rng) for _ in range(n)]


def test_the_example_story_is_parsed() -> None:
    story = synthetic_stories.parse(ROSA)
    assert story is not None and story.text() == ROSA
    assert synthetic_stories.pronouns_agree(story) and synthetic_stories.is_coherent(story) and story.topic == "sea"
    assert synthetic_stories.slots(story)["kin"] == "grandmother"
    assert synthetic_stories.paraphrase(story).text() == ROSA_ROUND


def test_every_frame_and_gender_round_trips() -> None:
    content = synthetic_stories.slots(some_stories(1)[0])
    for name, kin, weather, look in product(HEROES, KIN, ("", "cold"), ("", "red")):
        content |= {"name": name, "kin": kin, "weather": weather, "look": look}
        for frames in product(*(range(len(pair)) for pair in FRAMES)):
            story = synthetic_stories.render(content, frames)
            assert synthetic_stories.parse(story.text()) == story
            assert synthetic_stories.pronouns_agree(story)
            assert synthetic_stories.paraphrase(synthetic_stories.paraphrase(story)) == story


def test_random_stories_are_small_in_words_and_large_in_number() -> None:
    texts = [story.text() for story in some_stories(3000)]
    assert len(set(texts)) == len(texts)
    assert synthetic_stories.num_stories() > 1e9
    assert all(22 <= len(text.split()) <= 28 for text in texts)
    assert len({word for text in texts for word in re.findall(r"\w+|\S", text)}) <= 150
    assert not [text for text in texts if re.search(r"\ba [aeiou]", text) or "  " in text]


@pytest.mark.parametrize("wrong", [
    "", ".", "Rosa",
    ROSA[:-1],
    ROSA + " " + ROSA,
    ROSA.lower(),
    ROSA.replace("pearl", "peril"),
    ROSA.replace(". ", " . "),
    ROSA.replace("to her", "to him"),
    ROSA.replace("She laughed", "Her laughed"),
    ROSA.replace("One", "one"),
    ROSA.replace("showed", "Showed"),
    ROSA.replace(". ", ".\n"),
    ROSA.replace("foggy evening", "evening foggy"),
    ROSA.replace("a shiny", "shiny"),
    ROSA.replace("Rosa", "rosa"),
])  # fmt: skip
def test_other_texts_do_not_parse(wrong: str) -> None:
    assert synthetic_stories.parse(wrong) is None


def test_blanks_at_the_ends_are_ignored() -> None:
    assert synthetic_stories.parse(f" {ROSA}\n") == synthetic_stories.parse(ROSA)


@pytest.mark.parametrize("wrong", [
    ROSA.replace("She noticed", "He noticed"),
    ROSA.replace("Proudly she", "Proudly he"),
    ROSA.replace("to her", "to his"),
    ROSA.replace("hugged her", "hugged him"),
    ROSA.replace("She laughed", "He laughed"),
    ROSA.replace("Rosa", "Hugo"),
])  # fmt: skip
def test_a_wrong_pronoun_parses_but_does_not_agree(wrong: str) -> None:
    story = synthetic_stories.parse(wrong)
    assert story is not None and story.text() == wrong
    assert not synthetic_stories.pronouns_agree(story)


def test_a_thing_out_of_place_is_not_coherent() -> None:
    story = synthetic_stories.parse(ROSA.replace("pearl", "pumpkin"))
    assert story is not None and synthetic_stories.pronouns_agree(story) and not synthetic_stories.is_coherent(story)


def test_each_metric_is_a_share_of_the_right_texts() -> None:
    disagreeing = ROSA.replace("hugged her", "hugged him")
    found = synthetic_stories.grammar_metrics([ROSA, ROSA_ROUND, disagreeing, "Not a tale."], training={ROSA + " "})
    assert found["n"] == 4 and found["grammatical"] == 3 / 4 and found["agreement"] == 2 / 3
    assert found["novel"] == 3 / 4 and found["distinct"] == 1.0 and found["coherent"] == 1.0
    assert found["class_shares"] == {"garden": 0.0, "sea": 1.0, "forest": 0.0, "town": 0.0}
    assert math.isnan(synthetic_stories.grammar_metrics([], set())["grammatical"])


def test_a_written_corpus_is_complete_disjoint_and_reproducible(tmp_path) -> None:
    synthetic_stories.write(tmp_path / "a", train=300, valid=40, test=30, seed=5)
    synthetic_stories.write(tmp_path / "b", train=300, valid=40, test=30, seed=5)
    synthetic_stories.write(tmp_path / "c", train=300, valid=40, test=30, seed=6)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted(f"{kind}{split}.jsonl" for kind in ("", "pairs_") for split in ("train", "valid", "test"))
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)
    assert (tmp_path / "a" / "train.jsonl").read_bytes() != (tmp_path / "c" / "train.jsonl").read_bytes()

    contents: set[tuple[str, ...]] = set()
    for split, size in {"train": 300, "valid": 40, "test": 30}.items():
        rows = [json.loads(line) for line in (tmp_path / "a" / f"{split}.jsonl").read_text().splitlines()]
        pairs = [json.loads(line) for line in (tmp_path / "a" / f"pairs_{split}.jsonl").read_text().splitlines()]
        assert len(rows) == len(pairs) == size
        for row, pair in zip(rows, pairs, strict=True):
            story = synthetic_stories.parse(row["text"])
            assert story is not None and story.content not in contents
            contents.add(story.content)
            assert row["class"] == synthetic_stories.CLASS_NAMES[row["label"]] == story.topic
            assert pair == {"src": row["text"], "trg": synthetic_stories.paraphrase(story).text()}
    assert not [p for p in (tmp_path / "a").iterdir() if p.suffix == ".partial"]


def test_words_of_a_slot_are_about_equally_frequent() -> None:
    stories = some_stories(4000, seed=1)
    for slot, words in CONTENT.items():
        counts = [sum(synthetic_stories.slots(s)[slot] == word for s in stories) for word in words]
        expected = len(stories) / len(words)
        assert all(abs(count - expected) < 6 * math.sqrt(expected) for count in counts), slot


def test_an_empty_split_is_refused_in_one_line(tmp_path) -> None:
    with pytest.raises(UserError, match="at least 1 story"):
        synthetic_stories.write(tmp_path, train=10, valid=0)
    assert not list(tmp_path.iterdir())
