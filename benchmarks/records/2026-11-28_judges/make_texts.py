"""Sets of 1,000 texts to score: human captions, and four that are wrong in one way each. Standard library only.

python make_texts.py FLICKR30K OUT    FLICKR30K: folder with train.txt and valid.txt, five captions of an image in a row
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from pathlib import Path


def trigram_texts(training: list[str], n: int, rng: random.Random) -> list[str]:
    """Texts of a trigram model without smoothing: each word is drawn from those that followed the two before it."""
    followers = defaultdict(list)
    for text in training:
        words = ["<s>", "<s>", *text.split(), "</s>"]
        for first, second, third in zip(words, words[1:], words[2:], strict=False):
            followers[first, second].append(third)
    texts = []
    for _ in range(n):
        words = ["<s>", "<s>"]
        while words[-1] != "</s>" and len(words) < 60:
            words.append(rng.choice(followers[words[-2], words[-1]]))
        texts.append(" ".join(word for word in words if word not in ("<s>", "</s>")))
    return texts


def main(source: Path, out: Path) -> None:
    def write(name: str, texts: list[str]) -> None:
        (out / f"{name}.txt").write_text("".join(text + "\n" for text in texts), encoding="utf-8")

    def read(name: str) -> list[str]:
        return [line.strip() for line in (source / f"{name}.txt").read_text(encoding="utf-8").splitlines()]

    valid, train, rng = read("valid"), read("train"), random.Random(0)
    images = [valid[i : i + 5] for i in range(0, len(valid) - 4, 5)]
    rng.shuffle(images)
    one_side, other_side = images[: len(images) // 2], images[len(images) // 2 :]
    rng.shuffle(valid)
    write("references", valid[1000:])
    write("human", valid[:1000])  # other captions, many of the same images
    write("human-other-images", rng.sample([text for image in one_side for text in image], 1000))
    write("references-other-images", [text for image in other_side for text in image])
    training = rng.sample(train, 60_000)
    write("train", training)
    write("trigram", trigram_texts(training, 1000, rng))
    write("shuffled-words", [" ".join(rng.sample(text.split(), len(text.split()))) for text in valid[:1000]])
    few = rng.sample(training, 50)
    write("fifty-repeated", [rng.choice(few) for _ in range(1000)])
    write("copies", rng.sample(training, 1000))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
