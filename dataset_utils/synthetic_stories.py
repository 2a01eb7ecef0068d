"""The embedded corpus: short English stories with a class each and a paraphrase each, made and judged by one grammar.

    One foggy evening Rosa hurried to the lighthouse. She noticed a shiny pearl there. Proudly she showed it to her
    grandmother. She laughed and hugged her.

A fresh machine has neither a language model nor data; this corpus lets it do everything at once. As the grammar is
ours, quality is measured exactly: which samples parse, whose pronouns agree with the names sentences before, which
find what belongs to the place, which are not copied from training. The words and frames are in `tales_grammar`.

    python -m dataset_utils.tales --output_dir datasets/tales

It need not know tokenizers, models or how files are read back.
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
from utils.command_line import OneLineParser
from utils.errors import UserError, one_line

CLASS_NAMES = tuple(TOPICS)
GENDER = {**HEROES, **KIN}
_TOPIC_OF = {word: topic for topic, slots in TOPICS.items() for words in slots.values() for word in words}


@dataclass(frozen=True)
class Story:
    """What a story is about, which frame each sentence has, and the pronouns that it says (right or wrong)."""

    content: tuple[str, ...]  # a word per slot of CONTENT, in its order
    frames: tuple[int, ...]  # 0 or 1 per sentence
    pronouns: tuple[str, ...]  # a word per slot of PRONOUNS, in its order

    @property
    def topic(self) -> str:
        """The class, decided by where the story goes."""
        return _TOPIC_OF[slots(self)["place"]]

    def text(self) -> str:
        words = {**slots(self), **dict(zip(PRONOUNS, self.pronouns, strict=True))}
        sentences = (pair[k].format_map(words) for pair, k in zip(FRAMES, self.frames, strict=True))
        return " ".join(_capital(s.replace("  ", " ")) for s in sentences)  # two blanks: a slot left out


def slots(story: Story) -> dict[str, str]:
    """The content of a story by slot: what a paraphrase keeps. "" is a slot left out."""
    return dict(zip(CONTENT, story.content, strict=True))


def tell(content: Mapping[str, str], frames: Iterable[int]) -> Story:
    """The story with this content in these frames, its pronouns as they should be."""
    pronouns = tuple(forms["fm".index(GENDER[content[whom]])] for whom, forms in PRONOUNS.values())
    return Story(tuple(content[slot] for slot in CONTENT), tuple(frames), pronouns)


def paraphrase(story: Story) -> Story:
    """The same content in other words: every sentence in its other frame. Its own inverse on stories that agree."""
    return tell(slots(story), (1 - k for k in story.frames))


def invent(rng: random.Random) -> Story:
    """A random story. Topics are equally frequent, and so are the words of a slot."""

    def choose(words: Sequence[str]) -> str:
        return words[int(rng.random() * len(words))]  # of rng's methods only random() promises the same on every Python

    topic = TOPICS[choose(CLASS_NAMES)]
    content = {slot: choose(topic.get(slot, words)) for slot, words in CONTENT.items()}
    return tell(content, [int(rng.random() * len(pair)) for pair in FRAMES])


def number_of_stories() -> int:
    """How many different texts `invent` can make."""
    free = math.prod(len(words) for slot, words in CONTENT.items() if slot not in ("place", "thing"))
    places_and_things = sum(len(topic["place"]) * len(topic["thing"]) for topic in TOPICS.values())
    return free * places_and_things * math.prod(len(pair) for pair in FRAMES)


# ------------------------------------------------------------------------------------------------ reading


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _words_of(slot: str) -> tuple[str, ...]:
    return PRONOUNS[slot][1] if slot in PRONOUNS else CONTENT[slot]


def _pattern(frame: str) -> re.Pattern[str]:
    """A frame as an expression with a group per slot. A pronoun's group takes both genders of its form."""
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
_PLAIN = {_capital(w): w for slot in (*CONTENT, *PRONOUNS) for w in _words_of(slot)}  # undoes a sentence's capital


def parse(text: str) -> Story | None:
    """The story that a text tells, or None where it is not exactly one of the grammar's (blanks at the ends aside).

    Agreement is not asked for: a wrong pronoun of the right form parses, and so does a thing found in a place where
    it does not belong. `agrees` and `coherent` say so.
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
        k, match = matches[0]  # the frames of a sentence begin or end unlike each other: never two
        frames.append(k)
        found |= {slot: _PLAIN.get(word, word) if word else "" for slot, word in match.groupdict().items()}
    return Story(tuple(found[s] for s in CONTENT), tuple(frames), tuple(found[s] for s in PRONOUNS))


def agrees(story: Story) -> bool:
    """True where every pronoun has the gender of the person it stands for."""
    return story.pronouns == tell(slots(story), story.frames).pronouns


def coherent(story: Story) -> bool:
    """True where the thing belongs to the place."""
    return _TOPIC_OF[slots(story)["thing"]] == story.topic


def judge(texts: Sequence[str], training: Collection[str]) -> dict[str, Any]:
    """How good texts are, as shares in [0, 1]; nan where there is nothing to take a share of.

    grammatical: of all texts, those that parse. agreement, coherent, class_shares: of those that parse.
    novel: of all texts, those not in `training`. distinct: different texts over all texts.
    """
    known = {t.strip() for t in training}
    stories = [story for story in map(parse, texts) if story is not None]
    topics = Counter(story.topic for story in stories)

    def share(part: int, whole: int) -> float:
        return part / whole if whole else math.nan

    return {
        "n": len(texts),
        "grammatical": share(len(stories), len(texts)),
        "agreement": share(sum(map(agrees, stories)), len(stories)),
        "coherent": share(sum(map(coherent, stories)), len(stories)),
        "novel": share(sum(t.strip() not in known for t in texts), len(texts)),
        "distinct": share(len({t.strip() for t in texts}), len(texts)),
        "class_shares": {name: share(topics[name], len(stories)) for name in CLASS_NAMES},
    }


# ------------------------------------------------------------------------------------------------ writing


def splits(sizes: Mapping[str, int], seed: int = 0) -> dict[str, list[Story]]:
    """Stories for each split. No content comes twice, so that no split holds another's story or its paraphrase."""
    rng = random.Random(seed)
    seen: set[tuple[str, ...]] = set()
    made: dict[str, list[Story]] = {}
    for name, size in sizes.items():
        made[name] = []
        while len(made[name]) < size:
            story = invent(rng)
            if story.content not in seen:
                seen.add(story.content)
                made[name].append(story)
    return made


def write(folder: Path | str, train: int = 20_000, valid: int = 2_000, test: int = 2_000, seed: int = 0) -> Path:
    """Write the corpus: per split NAME.jsonl {text, label, class} and pairs_NAME.jsonl {src, trg}. Returns the folder.

    The same sizes and seed give the same bytes everywhere. Each file is written beside its name and then renamed.
    """
    sizes = {"train": train, "valid": valid, "test": test}
    if min(sizes.values()) < 1:
        raise UserError(f"a split needs at least 1 story, but {sizes} was asked for: pass sizes from 1 up")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, stories in splits(sizes, seed).items():
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


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m dataset_utils.tales", description="Write the embedded corpus.")
    parser.add_argument("--output_dir", type=Path, default=Path("datasets/tales"), help="folder (default: %(default)s)")
    for name, size in (("train", 20_000), ("valid", 2_000), ("test", 2_000)):
        parser.add_argument(f"--{name}", type=int, default=size, help="stories (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds tell other stories (default: %(default)s)")
    args = parser.parse_args(argv)
    folder = write(args.output_dir, args.train, args.valid, args.test, args.seed)
    print(f"wrote {args.train} + {args.valid} + {args.test} stories, and their paraphrases, to {folder}")


if __name__ == "__main__":
    main()
