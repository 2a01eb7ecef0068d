"""Write texts with a trained run, of any latent space, without its corpus.

    python -m pipelines.sample --run runs/simple --num_samples 10 --sampling_timesteps 200 --trajectory

One text a line goes to standard output and, with the number of texts and of steps in its name, to a file in the run
folder, which is never overwritten. With --trajectory texts are shown on their way from noise. Texts are drawn in blocks
of training's batch size; for a few of a large run, --eval_batch_size makes smaller ones, and other texts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipelines.flags.run_commands import parse_known, refuse_decoding, run_parser, with_decoding
from utils.errors import one_line


def parser() -> argparse.ArgumentParser:
    made = with_decoding(run_parser("pipelines.sample", __doc__, samples=10, of="texts; with --source, of each"))
    made.add_argument("--class_id", help="class by name or number, of a class-conditional run")
    made.add_argument("--source", action="append", default=[], help="of a run of pairs: a source; may be repeated")
    made.add_argument("--output_dir", type=Path, help="where the file goes (default: samples/ of the run folder)")
    made.add_argument("--trajectory", action="store_true", help="show the texts on their way from noise")
    return made


@one_line
def main(arguments: list[str] | None = None) -> int:
    given, others = parse_known(parser(), arguments)
    from evaluation.report import one_line as plain
    from pipelines.job import refuse_unwritable
    from pipelines.text_diffusion import TextDiffusionPipeline

    pipeline = TextDiffusionPipeline.from_run(given.run, device=given.device, flags=others)
    decoding = given.decoding or pipeline.decoding or "greedy"
    refuse_decoding(decoding, pipeline.generator.space.trainable)
    generator = pipeline.generator
    steps = len(generator.process.grid(generator.steps)) - 1
    place = given.output_dir or given.run / "samples"
    refuse_unwritable(place)
    name = f"{pipeline.sampler}.steps-{steps}.samples-{given.num_samples}.seed-{given.seed}"
    if given.trajectory:
        generator.watched(texts=min(3, given.num_samples), file=sys.stderr, path=place / f"{name}.trajectory.json")
    told = {"seed": given.seed, "decoding": decoding, "class_id": given.class_id}
    if given.source:
        rows = pipeline.candidates(given.source, given.num_samples, **told)
        pairs = [(source, text) for source, row in zip(given.source, rows, strict=True) for text in row]
        lines = [f"{plain(source)}\t{plain(text)}" for source, text in pairs]
    else:
        lines = [plain(text) for text in pipeline(given.num_samples, **told)]
    written = "".join(line + "\n" for line in lines)
    sys.stdout.write(written)
    sys.stdout.flush()
    print(f"written to {keep(place, name, written)}", file=sys.stderr)
    return 0


def keep(place: Path, name: str, text: str) -> Path:
    """Write a file that is not there yet: of equal names the later ones count up."""
    path, count = place / f"{name}.txt", 1
    while path.exists():
        count += 1
        path = place / f"{name}.{count}.txt"
    from utils.runs import write_text

    write_text(path, text)
    return path


if __name__ == "__main__":
    raise SystemExit(main())
