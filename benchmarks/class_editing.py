"""Texts moved to another class, by a class-conditional run: by arithmetic in latent space, and by noise and guidance.

    python benchmarks/class_editing.py runs/yelp/diffusion --corpus runs/yelp/corpus --move negative:positive \\
        positive:negative --output_dir runs/yelp/class_editing

--corpus is a folder with train.jsonl, test.jsonl and judge.jsonl, as benchmarks/real_text.py divides a corpus; texts to
move are the first ones of a seed with that class in test.jsonl, not chosen. Ways:

    arithmetic S  the text plus the mean latent of training texts of the new class less that of the old one, times
                  weight 0, 1 and 2, noised to time S and denoised with the new class; weight 0 moves nothing
    class S       the text noised to time S and denoised with the new class, more of it lost the larger S

class_editing.json has for each way how many outputs a classifier assigns to the new class, the share of the words that
are kept, and the similarity to the text (the cosine of embeddings by --mauve_encoder); class_editing.md the texts of
the first --shown. The classifier learns from judge.jsonl; its accuracy on test.jsonl stands beside. Other flags are
those of an evaluation, such as --sampling_timesteps 50.
"""

from __future__ import annotations

import random
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.latent_editing import other_words
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.run_folder import write_json, write_text

if TYPE_CHECKING:
    from dataset_utils.corpus import Corpus
    from dataset_utils.splits import Split

STRENGTHS, WEIGHTS = (0.3, 0.5, 0.7), (0.0, 1.0, 2.0)
POOL = 500  # training texts of a class, whose mean latent is its place


def parser() -> ArgumentParser:
    made = OneLineParser(
        prog="python benchmarks/class_editing.py",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("run", type=Path, help="run folder of a class-conditional diffusion model")
    add("--corpus", type=Path, required=True, metavar="DIR", help="folder of train.jsonl, test.jsonl and judge.jsonl")
    add("--move", nargs="+", required=True, metavar="A:B", help="classes: texts of A become texts of B")
    add("--guidance", type=float, default=2.0, help="weight of guidance by the new class (default: 2)")
    add("--n", type=int, default=100, help="texts of each move (default: 100)")
    add("--shown", type=int, default=5, help="texts that are printed (default: 5)")
    add("--mauve_encoder", metavar="MODEL", help="sentence encoder that compares texts")
    add("--seed", type=int, default=42)
    add("--output_dir", type=Path, required=True, metavar="DIR")
    return made


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    args, flags = parser().parse_known_args(argv)
    corpus = read_corpus(args.corpus)
    moves = [pair_of_classes(move, corpus.class_names) for move in args.move]
    study = Study(args, corpus, flags)
    for before, after in moves:
        study.move(before, after)
        write_json(args.output_dir / "class_editing.json", study.numbers)
        write_text(args.output_dir / "class_editing.md", "\n".join(study.page) + "\n")
    print(f"written to {args.output_dir}: class_editing.json, class_editing.md")
    return 0


def read_corpus(folder: Path) -> Corpus:
    """train.jsonl, judge.jsonl as its split for validation, and test.jsonl."""
    from dataset_utils import registry
    from dataset_utils.options import DataOptions

    train, judge, test = (folder / f"{name}.jsonl" for name in ("train", "judge", "test"))
    for path in (train, judge, test):
        if not path.is_file():
            raise UserError(f"--corpus {folder} has no {path.name}: benchmarks/real_text.py corpus makes such a folder")
    corpus = registry.load(DataOptions(train_file=str(train), valid_file=str(judge), test_file=str(test)))
    corpus.require_classes("--corpus")
    return corpus


def pair_of_classes(move: str, names: Sequence[str]) -> tuple[int, int]:
    before, _, after = move.partition(":")
    if before not in names or after not in names or before == after:
        raise UserError(f"--move {move}: give two classes A:B of {', '.join(names)}")
    return names.index(before), names.index(after)


def texts_of_class(split: Split, label: int, n: int, seed: int) -> list[str]:
    """n texts of a class, drawn at random."""
    found = [text for text, own in zip(split.texts, split.labels or [], strict=True) if own == label]
    return random.Random(seed).sample(found, min(n, len(found)))


class Study:
    """Numbers and texts of the moves."""

    def __init__(self, args: Namespace, corpus: Corpus, flags: Sequence[str]) -> None:
        from evaluation import classifiers, encoders
        from pipelines.text_diffusion import TextDiffusionPipeline

        self.args, self.corpus = args, corpus
        self.pipe = TextDiffusionPipeline.from_pretrained(args.run, argv=flags)
        self.encoder = encoders.load(args.mauve_encoder) if args.mauve_encoder else None
        judge, test = corpus.valid, corpus.test
        self.classifier = classifiers.load(
            None,
            corpus.class_names,
            texts=judge.texts,
            labels=judge.labels,
            held_out=(test.texts, test.labels or []),
            folder=args.output_dir / "classifier",
        )
        accuracy = self.classifier.accuracy(test.texts, test.labels or [])["accuracy"]
        self.numbers: dict[str, Any] = {"classifier_accuracy": accuracy, "guidance": args.guidance, "seed": args.seed}
        self.page: list[str] = []

    def move(self, before: int, after: int) -> None:
        args, names = self.args, self.corpus.class_names
        texts = texts_of_class(self.corpus.test, before, args.n, args.seed)
        remove, add = (texts_of_class(self.corpus.train, label, POOL, args.seed) for label in (before, after))
        if not (texts and add and remove):
            raise UserError(f"--move {names[before]}:{names[after]}: a file of --corpus has no text of these classes")
        common: dict[str, Any] = {"class_id": names[after], "guidance": args.guidance, "seed": args.seed}
        made: dict[str, list[str]] = {}
        for weight in WEIGHTS:
            rows = self.pipe.edit(texts, add=add, remove=remove, weight=weight, strength=STRENGTHS[0], **common)
            made[f"arithmetic {STRENGTHS[0]}, weight {weight:g}"] = [row[0] for row in rows]
        for strength in STRENGTHS[1:]:
            rows = self.pipe.variations(texts, 1, strength=strength, **common)
            made[f"class {strength}"] = [row[0] for row in rows]
        found = {"as they were": self.compare(texts, texts, after)}
        found |= {way: self.compare(texts, outputs, after) for way, outputs in made.items()}
        title = f"{names[before]} to {names[after]}"
        self.numbers[title] = {"texts": len(texts), **found}
        lines = [f"{way}: {numbers}" for way, numbers in found.items()]
        for i, text in enumerate(texts[: args.shown]):
            lines += ["", f"- **{text}**", *(f"  - {way}: {out[i]}" for way, out in made.items())]
        self.page += [f"## {title} ({len(texts)} texts)", "", *lines, ""]
        print(f"\n== {title}\n" + "\n".join(lines), flush=True)

    def compare(self, texts: Sequence[str], outputs: Sequence[str], label: int) -> dict[str, float | None]:
        """Of outputs, one for each text: the share judged of the class, of words kept, and the mean similarity."""
        words = [other_words(text) for text in texts]
        kept = [len(w & other_words(out)) / max(1, len(w)) for w, out in zip(words, outputs, strict=True)]
        similarity = None
        if self.encoder is not None:
            import torch

            both = torch.as_tensor(self.encoder.features([*outputs, *texts])).float()
            similarity = round(float(torch.cosine_similarity(both[: len(texts)], both[len(texts) :]).mean()), 4)
        judged = fmean(own == label for own in self.classifier.predict(outputs))
        return {"judged_of_the_class": round(judged, 4), "words_kept": round(fmean(kept), 4), "similarity": similarity}


if __name__ == "__main__":
    raise SystemExit(main())
