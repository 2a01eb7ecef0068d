"""What only latents can do, with a trained run: variations, interpolation, edits by latent arithmetic.

    python benchmarks/latent_editing.py runs/captions/diffusion --references test.jsonl --train train.jsonl \\
        --edits man:woman dog:cat --output_dir runs/editing

Texts are the first ones of a seed, not chosen. For each part editing.json has numbers over --n texts, and editing.md
the texts of the first --shown:

    variations     by strength: similarity to the text and of two variations, how many differ from the text
    interpolation  similarity of each point to both ends: it should fall on one side and rise on the other
    edits          A:B replaces a word: texts with A, moved from the mean of training texts with A to the mean of those
                   with B; how many outputs have B, how many still have A, the share of the other words that are kept.
                   Weight 0 is the control: the same noise, nothing added

Similarity is the cosine of sentence embeddings by --mauve_encoder, or none. Other flags are those of an evaluation,
such as --sampling_timesteps 50.
"""

from __future__ import annotations

import random
import re
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.run_folder import write_json, write_text

STRENGTHS, WEIGHTS, POINTS = (0.3, 0.5, 0.7, 0.9), (0.0, 1.0, 2.0), 5
POOL = 200  # texts with a word, whose mean latents are its direction


def parser() -> ArgumentParser:
    made = OneLineParser(
        prog="python benchmarks/latent_editing.py",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("run", type=Path, help="run folder of a diffusion model")
    add("--references", type=Path, required=True, metavar="FILE", help="held-out texts")
    add(
        "--train",
        type=Path,
        required=True,
        metavar="FILE",
        help="training texts, whose means are the directions of edits",
    )
    add("--edits", nargs="*", default=[], metavar="A:B", help="words to replace")
    add("--n", type=int, default=50, help="texts of each part (default: 50)")
    add("--shown", type=int, default=5, help="texts that are printed (default: 5)")
    add("--strength", type=float, default=0.3, help="noise of edits (default: 0.3)")
    add("--mauve_encoder", metavar="MODEL", help="sentence encoder that compares texts")
    add("--seed", type=int, default=42)
    add("--output_dir", type=Path, required=True, metavar="DIR")
    return made


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    args, flags = parser().parse_known_args(argv)
    from evaluation.score.__main__ import read

    texts = read(args.references, "references").first()
    random.Random(args.seed).shuffle(texts)
    pool = read(args.train, "train").first() if args.edits else []
    edits = [word_pair(edit) for edit in args.edits]
    study = Study(args, texts, pool, flags)
    parts = [study.variations, study.interpolation, *(lambda pair=pair: study.edit(*pair) for pair in edits)]
    for part in parts:
        part()
        write_json(args.output_dir / "editing.json", study.numbers)
        write_text(args.output_dir / "editing.md", "\n".join(study.page) + "\n")
    print(f"written to {args.output_dir}: editing.json, editing.md")
    return 0


def word_pair(edit: str) -> tuple[str, str]:
    before, colon, after = edit.partition(":")
    if not (colon and before.strip() and after.strip()):
        raise UserError(f"--edits {edit}: give WORD:WORD")
    return before, after


def has(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def other_words(text: str, *without: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower())) - {word.lower() for word in without}


class Study:
    """Numbers and texts of the parts, in the order in which they are made."""

    def __init__(self, args: Namespace, texts: list[str], pool: list[str], flags: Sequence[str]) -> None:
        from evaluation import encoders
        from pipelines.text_diffusion import TextDiffusionPipeline

        if len(texts) < 2 * args.n:
            raise UserError(
                f"--references {args.references} has {len(texts)} texts: --n {args.n} needs {2 * args.n}, two each"
            )
        self.args, self.texts, self.pool = args, texts, pool
        self.pipe = TextDiffusionPipeline.from_pretrained(args.run, argv=flags)
        self.encoder = encoders.load(args.mauve_encoder) if args.mauve_encoder else None
        self.numbers: dict[str, Any] = {"n": args.n, "seed": args.seed}
        self.page: list[str] = []

    def show(self, title: str, lines: Sequence[str]) -> None:
        self.page += [f"## {title}", "", *lines, ""]
        print(f"\n== {title}\n" + "\n".join(lines), flush=True)

    def similarity(self, texts: Sequence[str], others: Sequence[str]) -> float | None:
        """Mean cosine of the embeddings of texts and others, one by one."""
        if self.encoder is None:
            return None
        import torch

        both = torch.as_tensor(self.encoder.features([*texts, *others])).float()
        return round(float(torch.cosine_similarity(both[: len(texts)], both[len(texts) :]).mean()), 4)

    def variations(self) -> None:
        texts, found = self.texts[: self.args.n], {}
        shown = [[f"- **{text}**"] for text in texts[: self.args.shown]]
        for strength in STRENGTHS:
            made = self.pipe.variations(texts, 2, strength=strength, seed=self.args.seed)
            first, second = ([row[k] for row in made] for k in (0, 1))
            found[str(strength)] = {
                "similarity": self.similarity(first, texts),
                "similarity_of_two": self.similarity(first, second),
                "changed": fmean(a != b for a, b in zip(first, texts, strict=True)),
            }
            for rows, text in zip(shown, first, strict=False):
                rows.append(f"  - strength {strength}: {text}")
        lines = [line for rows in shown for line in rows]
        self.numbers["variations"] = found
        self.show("Variations", [f"{key}: {value}" for key, value in found.items()] + ["", *lines])

    def interpolation(self) -> None:
        n = self.args.n
        firsts, seconds = self.texts[:n], self.texts[n : 2 * n]
        paths = [self.pipe.interpolate(a, b, POINTS, seed=self.args.seed) for a, b in zip(firsts, seconds, strict=True)]
        found = {
            "to_first": [self.similarity([path[i] for path in paths], firsts) for i in range(POINTS)],
            "to_second": [self.similarity([path[i] for path in paths], seconds) for i in range(POINTS)],
        }
        self.numbers["interpolation"] = found
        lines = []
        for a, b, path in list(zip(firsts, seconds, paths, strict=True))[: self.args.shown]:
            lines += [f"- **{a}**", *(f"  - {text}" for text in path), f"  - **{b}**"]
        self.show("Interpolation", [f"{key}: {value}" for key, value in found.items()] + ["", *lines])

    def edit(self, before: str, after: str) -> None:
        args = self.args
        texts = [text for text in self.texts if has(text, before) and not has(text, after)][: args.n]
        add = [text for text in self.pool if has(text, after) and not has(text, before)][:POOL]
        remove = [text for text in self.pool if has(text, before) and not has(text, after)][:POOL]
        if not (texts and add and remove):
            raise UserError(f"--edits {before}:{after}: the texts have not both words: choose others")
        found, shown = {}, [[f"- **{text}**"] for text in texts[: args.shown]]
        for weight in WEIGHTS:
            rows = self.pipe.edit(texts, add=add, remove=remove, weight=weight, strength=args.strength, seed=args.seed)
            made = [row[0] for row in rows]
            kept = [
                len(words & other_words(new, before, after)) / max(1, len(words))
                for words, new in ((other_words(old, before, after), new) for old, new in zip(texts, made, strict=True))
            ]
            found[str(weight)] = {
                "has_after": fmean(has(text, after) for text in made),
                "has_before": fmean(has(text, before) for text in made),
                "other_words_kept": round(fmean(kept), 4),
                "similarity": self.similarity(made, texts),
            }
            for lines, text in zip(shown, made, strict=False):
                lines.append(f"  - weight {weight:g}: {text}")
        self.numbers[f"edit {before}:{after}"] = {"texts": len(texts), **found}
        lines = [f"weight {key}: {value}" for key, value in found.items()]
        self.show(f"Edit: {before} -> {after} ({len(texts)} texts)", [*lines, "", *(x for rows in shown for x in rows)])


if __name__ == "__main__":
    raise SystemExit(main())
