"""Sample texts from a trained run, in any latent space; the corpus is not needed.

    python -m pipelines.sample --run runs/simple --num_samples 10 --sampling_timesteps 200 --trajectory

The texts go to standard output, one per line, and to a new file in the run folder whose name states the numbers of
texts and of steps. --trajectory also decodes intermediate estimates. Texts are sampled in batches of the training
batch size; a smaller --eval_batch_size is faster for a few texts of a large run, and gives other texts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipelines.cli.run_arguments import (
    add_decoding_argument,
    check_no_decoding,
    named_path,
    parse_known,
    run_parser,
)
from utils.errors import exit_on_user_error, one_line_text


def parser() -> argparse.ArgumentParser:
    made = add_decoding_argument(
        run_parser("pipelines.sample", __doc__, samples=10, of="number of texts (of each --source)")
    )
    made.add_argument("--class_id", help="class, by name or number (class-conditional runs)")
    made.add_argument("--source", action="append", default=[], help="source text (runs on pairs); may be repeated")
    made.add_argument(
        "--output_dir", type=named_path, help="folder of the output file (default: samples/ in the run folder)"
    )
    made.add_argument("--trajectory", action="store_true", help="decode and show intermediate estimates")
    return made


@exit_on_user_error
def main(arguments: list[str] | None = None) -> int:
    given, others = parse_known(parser(), arguments)
    from pipelines.run_context import check_writable
    from pipelines.text_diffusion import TextDiffusionPipeline
    from utils.terminal import single_line

    pipeline = TextDiffusionPipeline.from_pretrained(given.run, device=given.device, argv=others)
    decoding = given.decoding or pipeline.decoding or "greedy"
    check_no_decoding(decoding, not pipeline.generator.space.has_text_decoder)
    generator = pipeline.generator
    steps = len(generator.process.grid(generator.steps)) - 1
    folder = given.output_dir or given.run / "samples"
    check_writable(folder)
    name = f"{pipeline.sampler}.steps-{steps}.samples-{given.num_samples}.seed-{given.seed}"
    if given.trajectory:
        path = folder / f"{name}.trajectory.json"
        generator.with_trajectory(texts=min(3, given.num_samples), file=sys.stderr, path=path)
    options = {"seed": given.seed, "decoding": decoding, "class_id": given.class_id}
    if given.source:
        rows = pipeline.candidates(given.source, given.num_samples, **options)
        pairs = [(source, text) for source, row in zip(given.source, rows, strict=True) for text in row]
        lines = [f"{single_line(source)}\t{single_line(text)}" for source, text in pairs]
    else:
        lines = [single_line(text) for text in pipeline.sample(given.num_samples, **options)]
    content = "".join(line + "\n" for line in lines)
    path = write_new(folder, name, content)  # before standard output, whose reader may have closed it
    print(f"written to {one_line_text(path)}", file=sys.stderr)
    sys.stdout.write(content)
    return 0


def write_new(folder: Path, name: str, text: str) -> Path:
    """Write {name}.txt; where that file exists, {name}.2.txt, and so on. Returns its path."""
    path, count = folder / f"{name}.txt", 1
    while path.exists():
        count += 1
        path = folder / f"{name}.{count}.txt"
    from utils.run_folder import write_text

    write_text(path, text)
    return path


if __name__ == "__main__":
    raise SystemExit(main())
