"""The built-in corpus: short English stories, each with a class and a paraphrase, generated and parsed by one grammar.

    One foggy evening Rosa hurried to the lighthouse. She noticed a shiny pearl there. Proudly she showed it to her
    grandmother. She laughed and hugged her.

It needs no download, so that every program runs on a new machine. Since the grammar is known, the quality of samples
is measured exactly: which of them parse, in which pronouns agree with the names of earlier sentences, in which the
thing belongs to the place, and which are not copied from training. Words and sentence frames are in `story_grammar`.

    python -m dataset_utils.tales --output_dir datasets/tales
"""

from __future__ import annotations

import json
import math
import os
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset_utils.story_grammar import CONTENT, FRAMES, HEROES, KIN, OPTIONAL, PRONOUNS, TOPICS
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error

CLASS_NAMES = tuple(TOPICS)
GENDER = {**HEROES, **KIN}
_TOPIC_OF = {word: topic for topic, slots in TOPICS.items() for words in slots.values() for word in words}


@dataclass(frozen=True)
class Story:
    """A parsed story: its content words, the frame of each sentence, and its pronouns (correct or not)."""

    content: tuple[str, ...]  # a word per slot of CONTENT, in its order
    frames: tuple[int, ...]  # 0 or 1 per sentence
    pronouns: tuple[str, ...]  # a word per slot of PRONOUNS, in its order

    @property
    def topic(self) -> str:
        """The class, which is determined by the place of the story."""
        return _TOPIC_OF[slots(self)["place"]]

    def text(self) -> str:
        words = {**slots(self), **dict(zip(PRONOUNS, self.pronouns, strict=True))}
        sentences = (pair[k].format_map(words) for pair, k in zip(FRAMES, self.frames, strict=True))
        return " ".join(_capital(s.replace("  ", " ")) for s in sentences)  # two blanks: an empty slot


def slots(story: Story) -> dict[str, str]:
    """Slot -> content word, which a paraphrase keeps; "" for an empty slot."""
    return dict(zip(CONTENT, story.content, strict=True))


def render(content: Mapping[str, str], frames: Iterable[int]) -> Story:
    """The story with this content and these frames, and the correct pronouns."""
    pronouns = tuple(forms["fm".index(GENDER[content[whom]])] for whom, forms in PRONOUNS.values())
    return Story(tuple(content[slot] for slot in CONTENT), tuple(frames), pronouns)


def paraphrase(story: Story) -> Story:
    """The same content with every sentence in its other frame. Its own inverse on stories whose pronouns agree."""
    return render(slots(story), (1 - k for k in story.frames))


def sample_story(rng: random.Random) -> Story:
    """A random story. Topics are uniform, and so are the words of each slot."""

    def choose(words: Sequence[str]) -> str:
        return words[int(rng.random() * len(words))]  # only random() returns the same in every Python version

    topic = TOPICS[choose(CLASS_NAMES)]
    content = {slot: choose(topic.get(slot, words)) for slot, words in CONTENT.items()}
    return render(content, [int(rng.random() * len(pair)) for pair in FRAMES])


def num_stories() -> int:
    """Number of different texts that `sample_story` can return."""
    free = math.prod(len(words) for slot, words in CONTENT.items() if slot not in ("place", "thing"))
    places_and_things = sum(len(topic["place"]) * len(topic["thing"]) for topic in TOPICS.values())
    return free * places_and_things * math.prod(len(pair) for pair in FRAMES)


# ------------------------------------------------------------------------------------------------ parsing


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _words_of(slot: str) -> tuple[str, ...]:
    return PRONOUNS[slot][1] if slot in PRONOUNS else CONTENT[slot]


def _pattern(frame: str) -> re.Pattern[str]:
    """Regular expression of a frame, with a group per slot. The group of a pronoun matches both genders of its form."""
    parts = []
    for i, part in enumerate(re.split(r"(?<= )", frame)):  # pieces like "{slot} ", "word ", "{slot}."
        slot = re.match(r"{(\w+)}", part)
        words = [w for w in _words_of(slot[1]) if w] if slot else [part]
        options = "|".join(re.escape(_capital(w) if i == 0 else w) for w in words)
        if slot is None:
            parts.append(options)
        else:
            group = f"(?P<{slot[1]}>{options}){re.escape(part[slot.end() :])}"
            parts.append(f"(?:{group})?" if slot[1] in OPTIONAL else group)
    return re.compile("".join(parts))


_PATTERNS = tuple(tuple(_pattern(frame) for frame in pair) for pair in FRAMES)
_LOWERCASE = {_capital(w): w for slot in (*CONTENT, *PRONOUNS) for w in _words_of(slot)}  # capitalized word -> word


def parse(text: str) -> Story | None:
    """The story of a text; None where the grammar does not generate that text (blanks at the ends are ignored).

    A pronoun of the wrong gender parses, and so does a thing in a place where it does not belong: see pronouns_agree
    and is_coherent.
    """
    sentences = text.strip().split(". ")
    if len(sentences) != len(FRAMES):
        return None
    found: dict[str, str] = {}
    frames = []
    for i, (sentence, pair) in enumerate(zip(sentences, _PATTERNS, strict=True)):
        sentence += "." if i < len(FRAMES) - 1 else ""
        matches = [(k, match) for k, pattern in enumerate(pair) if (match := pattern.fullmatch(sentence))]
        if not matches:
            return None
        k, match = matches[0]  # the two frames of a sentence differ at the beginning or end, so only one can match
        frames.append(k)
        found |= {slot: _LOWERCASE.get(word, word) if word else "" for slot, word in match.groupdict().items()}
    return Story(tuple(found[s] for s in CONTENT), tuple(frames), tuple(found[s] for s in PRONOUNS))


def pronouns_agree(story: Story) -> bool:
    """Whether every pronoun has the gender of the person that it refers to."""
    return story.pronouns == render(slots(story), story.frames).pronouns


def is_coherent(story: Story) -> bool:
    """Whether the thing belongs to the place."""
    return _TOPIC_OF[slots(story)["thing"]] == story.topic


def grammar_metrics(texts: Sequence[str], training: Collection[str]) -> dict[str, Any]:
    """Quality of texts, as shares in [0, 1]; nan for a share of zero texts.

    grammatical: texts that parse. agreement, coherent, class_shares: shares of the texts that parse. novel: texts that
    are not in `training`. distinct: number of different texts over the number of texts.
    """
    known = {t.strip() for t in training}
    stories = [story for story in map(parse, texts) if story is not None]
    topics = Counter(story.topic for story in stories)

    def share(part: int, whole: int) -> float:
        return part / whole if whole else math.nan

    return {
        "n": len(texts),
        "grammatical": share(len(stories), len(texts)),
        "agreement": share(sum(map(pronouns_agree, stories)), len(stories)),
        "coherent": share(sum(map(is_coherent, stories)), len(stories)),
        "novel": share(sum(t.strip() not in known for t in texts), len(texts)),
        "distinct": share(len({t.strip() for t in texts}), len(texts)),
        "class_shares": {name: share(topics[name], len(stories)) for name in CLASS_NAMES},
    }


# ------------------------------------------------------------------------------------------------ writing


def generate_splits(sizes: Mapping[str, int], seed: int = 0) -> dict[str, list[Story]]:
    """Stories for each split. No content occurs twice, so that no split contains a story or paraphrase of another."""
    rng = random.Random(seed)
    seen: set[tuple[str, ...]] = set()
    made: dict[str, list[Story]] = {}
    for name, size in sizes.items():
        made[name] = []
        while len(made[name]) < size:
            story = sample_story(rng)
            if story.content not in seen:
                seen.add(story.content)
                made[name].append(story)
    return made


def write(folder: Path | str, train: int = 20_000, valid: int = 2_000, test: int = 2_000, seed: int = 0) -> Path:
    """Write the corpus: per split NAME.jsonl {text, label, class} and pairs_NAME.jsonl {src, trg}. Returns the folder.

    The same sizes and seed give the same bytes on every machine. Each file is written under another name, then renamed.
    """
    sizes = {"train": train, "valid": valid, "test": test}
    if min(sizes.values()) < 1:
        raise UserError(f"a split needs at least 1 story, not {sizes}: pass sizes of 1 or more")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, stories in generate_splits(sizes, seed).items():
        _write_lines(
            folder / f"{name}.jsonl",
            ({"text": s.text(), "label": CLASS_NAMES.index(s.topic), "class": s.topic} for s in stories),
        )
        _write_lines(folder / f"pairs_{name}.jsonl", ({"src": s.text(), "trg": paraphrase(s).text()} for s in stories))
    return folder


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m dataset_utils.tales", description="Write the built-in corpus of stories.")
    parser.add_argument("--output_dir", type=Path, default=Path("datasets/tales"), help="folder (default: %(default)s)")
    for name, size in (("train", 20_000), ("valid", 2_000), ("test", 2_000)):
        parser.add_argument(f"--{name}", type=int, default=size, help="stories (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other stories (default: %(default)s)")
    args = parser.parse_args(argv)
    folder = write(args.output_dir, args.train, args.valid, args.test, args.seed)
    print(f"wrote {args.train} + {args.valid} + {args.test} stories, and their paraphrases, to {folder}")


if __name__ == "__main__":
    main()
