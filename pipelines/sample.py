"""Sample texts from a trained run, in any latent space; the corpus is not needed.

    python -m pipelines.sample runs/simple -n 10 --sampling_timesteps 200 --trajectory
    python -m pipelines.sample runs/ag_news -n 16 --class_id sports --guidance 2 --format jsonl
    python -m pipelines.sample runs/qqp --source_file questions.txt --candidates 5 | head
    cat requests.jsonl | python -m pipelines.sample runs/qqp --source_file - --format jsonl

The texts go to standard output after every batch, one per line, and to a new file in the run folder whose name states
the numbers of texts and of steps. A text depends on its seed and number, not on how many are drawn or on
--eval_batch_size. Lines of JSON hold text, seed, index, class, source, candidates and decoding. --trajectory also
decodes intermediate estimates.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from pipelines.cli.run_arguments import (
    add_decoding_argument,
    add_guidance_argument,
    check_no_decoding,
    check_range,
    guidance_as_typed,
    named_path,
    parse_known,
    run_parser,
)
from utils.argparse_utils import choices_of
from utils.cli.flags import table_keys
from utils.errors import UserError, exit_on_user_error, one_line_text

if TYPE_CHECKING:
    from pipelines.sampling.requests import Wanted
    from pipelines.sampling.sampler_call import InputsFn
    from pipelines.sampling.text_output import TextOutput, TextRecord
    from pipelines.text_diffusion import TextDiffusionPipeline

MOST_CANDIDATES = 10_000


def parser() -> argparse.ArgumentParser:
    made = add_guidance_argument(
        add_decoding_argument(
            run_parser("pipelines.sample", __doc__, samples=10, of="number of texts (of each source)")
        )
    )
    made.add_argument(
        "--class_id",
        help="class, by name or number (class-conditional runs); all: the texts of every class; prior: classes drawn "
        "with their training frequencies; unconditional: no class",
    )
    made.add_argument("--source", action="append", default=[], help="source text (runs on pairs); may be repeated")
    made.add_argument(
        "--source_file",
        help="sources, one per line, or .jsonl with source, class or both; - reads standard input",
    )
    made.add_argument(
        "--candidates", type=int, help="texts drawn for each source, of which the one most like the others is chosen"
    )
    made.add_argument(
        "--mbr_utility",
        default="rouge2",
        help=f"likeness of --candidates: {', '.join(table_keys('evaluation.mbr', 'UTILITIES'))} (default %(default)s)",
    )
    made.add_argument("--format", default="text", help="text, jsonl or tsv (default %(default)s)")
    made.add_argument(
        "--output_dir", type=named_path, help="folder of the output file (default: samples/ in the run folder)"
    )
    made.add_argument(
        "--trajectory", "--show_denoising", action="store_true", help="decode and show intermediate estimates"
    )
    return made


@exit_on_user_error
def main(arguments: list[str] | None = None) -> int:
    given, others = parse_known(parser(), arguments)
    check_arguments(given)
    from pipelines.run_context import check_writable
    from pipelines.sampling.classes import ALL, PRIOR
    from pipelines.sampling.requests import Wanted, read_requests
    from pipelines.sampling.text_output import TextOutput
    from pipelines.text_diffusion import TextDiffusionPipeline
    from utils.preemption import exit_on_termination

    requests = [Wanted(source) for source in given.source]
    requests += read_requests(given.source_file) if given.source_file is not None else []
    with guidance_as_typed(given):
        pipeline = TextDiffusionPipeline.from_pretrained(given.run, device=given.device, argv=others)
    generator = pipeline.generator
    given.decoding = given.decoding or pipeline.decoding or "greedy"
    check_no_decoding(given.decoding, not generator.space.has_text_decoder)
    steps = len(generator.process.grid(generator.steps)) - 1
    folder = given.output_dir or given.run / "samples"
    check_writable(folder)
    name = f"{pipeline.sampler}.steps-{steps}.samples-{{}}.seed-{given.seed}"
    if given.trajectory:
        path = folder / f"{name.format(given.num_samples)}.trajectory.json"
        generator.with_trajectory(texts=min(3, given.num_samples), file=sys.stderr, path=path)
    batches = for_requests(pipeline, requests, given) if requests else of_classes(pipeline, given)
    with exit_on_termination():
        first = next(batches, [])  # what cannot be used is refused before a file is made
        output = TextOutput(folder, given.format, show_class=given.class_id in (ALL, PRIOR))
        write_batches(output, chain([first], batches), name, 1 if given.candidates else given.num_samples)
    return 0


def write_batches(output: TextOutput, batches: Iterable[list[TextRecord]], name: str, count: int) -> None:
    """Write batches as they come, then say where they are. What ends it early leaves the texts so far in a file.

    name: of the file, with {} for the number of texts. count: that number for a call that comes to its end.
    """
    try:
        for records in batches:
            output.write(records)
    except BaseException as stop:
        path = output.finish(name.format(output.count)) if output.count else None
        output.discard()
        if isinstance(stop, (KeyboardInterrupt, SystemExit)):
            where = f": {output.count} texts are in {one_line_text(path)}" if path else ", before the first text"
            print(f"interrupted{where}", file=sys.stderr)
            raise SystemExit(130 if isinstance(stop, KeyboardInterrupt) else stop.code) from None
        if path:
            print(f"written to {one_line_text(path)}", file=sys.stderr)
        raise  # of a reader that has enough (BrokenPipeError), nothing more is said
    print(f"written to {one_line_text(output.finish(name.format(count)))}", file=sys.stderr)


def check_arguments(given: argparse.Namespace) -> None:
    """UserError for values that are none, and for flags that contradict each other."""
    choices_of("--format", given.format, ("text", "jsonl", "tsv"))
    choices_of("--mbr_utility", given.mbr_utility, table_keys("evaluation.mbr", "UTILITIES"))
    if given.candidates is None:
        return
    check_range("--candidates", given.candidates, 1, MOST_CANDIDATES)
    if not given.source and given.source_file is None:
        raise UserError(f"--candidates {given.candidates} are drawn for a source: give --source or --source_file")
    if given.num_samples_typed:
        raise UserError("--candidates gives one text for each source, and --num_samples several: leave one of them out")


def for_requests(
    pipeline: TextDiffusionPipeline, wanted: Sequence[Wanted], given: argparse.Namespace
) -> Iterator[list[TextRecord]]:
    """Texts for sources, classes or both, in the order of the requests; a batch at a time."""
    from pipelines.sampling.requests import resolve_classes

    generator, names, make = pipeline.generator, pipeline.class_names, record_maker(pipeline, given)
    if given.candidates:
        pipeline.check_utility(given.mbr_utility, "--mbr_utility")
    null_prob = 1.0 if pipeline.has_null_class else 0.0
    requests = resolve_classes(wanted, given.class_id, names, given.run, given.seed, null_prob)
    inputs = inputs_of(pipeline, requests, given.seed)
    count, k = 0, given.candidates or given.num_samples
    for examples, rows in generator.stream_candidates(len(requests), k, given.seed, given.decoding, inputs):
        records = []
        for i, row in zip(examples, rows, strict=True):
            candidates = row if given.candidates else None
            chosen = pipeline.most_alike([row], given.mbr_utility) if candidates else row
            c = requests[i].class_id
            own = {"class_name": None if c is None else names[c], "source": requests[i].source}
            records += [make(text=text, index=count + j, candidates=candidates, **own) for j, text in enumerate(chosen)]
            count += len(chosen)
        yield records


def inputs_of(pipeline: TextDiffusionPipeline, requests: Sequence[Wanted], seed: int) -> InputsFn:
    """The sources and classes of requests as inputs. UserError where the run needs or lacks one of them."""
    import torch

    from pipelines.sampling.arguments import check_texts
    from pipelines.sampling.sampler_call import SampleInputs
    from utils.records import Condition

    sources, given = pipeline.sources, [request.source for request in requests if request.source is not None]
    if given and sources is None:
        raise UserError("this run was trained without sources: train one on a corpus of pairs, or give classes alone")
    if sources is not None and len(given) < len(requests):
        other = next(request for request in requests if request.source is None)
        raise UserError(f"{other.where}: this run generates from sources, and the line has none: add one")
    ids = [request.class_id for request in requests]
    classes = None if ids[0] is None else torch.tensor(ids, device=pipeline.generator.device)
    if sources is not None:
        texts = check_texts(given, "source", tokenizer=sources.tokenizer, limit=sources.limit)
        return sources.make_inputs(texts, seed, classes)
    inputs = SampleInputs(Condition.of(class_id=classes))
    return lambda first, last: inputs[first:last]


def of_classes(pipeline: TextDiffusionPipeline, given: argparse.Namespace) -> Iterator[list[TextRecord]]:
    """Texts without sources: of no class, of one, of each class in turn, or of classes drawn by frequency."""
    from pipelines.sampling.classes import PRIOR, TrainingClassPrior, one_class
    from pipelines.sampling.requests import Wanted, check_has_classes, prior_labels, resolve_classes

    names, make = pipeline.class_names, record_maker(pipeline, given)
    if pipeline.sources is not None:
        raise UserError("this run generates from sources: give --source or --source_file")
    prior = None
    if given.class_id == PRIOR:
        check_has_classes(names, PRIOR)
        prior = TrainingClassPrior(prior_labels(given.run, names))
        classes: list[int | None] = [None]
    else:
        null_prob = 1.0 if pipeline.has_null_class else 0.0
        wanted = resolve_classes([Wanted()], given.class_id, names, given.run, given.seed, null_prob)
        classes = [request.class_id for request in wanted]
    if given.guidance not in (None, 1) and prior is None and classes == [None]:
        raise UserError(f"--guidance {given.guidance:g} needs a class: add --class_id, or leave --guidance out")
    count = 0
    for c in classes:
        conditions = prior if c is None else one_class(c)
        for batch in pipeline.generator.stream(given.num_samples, given.seed, given.decoding, conditions):
            records = []
            for origin, text in batch:
                own = c if prior is None else None if origin is None else prior.drawn[origin[0]][origin[1]]
                records.append(make(text=text, index=count, class_name=None if own is None else names[own]))
                count += 1
            yield records


def record_maker(pipeline: TextDiffusionPipeline, given: argparse.Namespace) -> Callable[..., TextRecord]:
    """TextRecord with what all texts of a call share."""
    from latent_models.generation.decoding import changed_settings
    from pipelines.builders.text_decoders import decoded_space_of
    from pipelines.sampling.text_output import TextRecord

    causal = decoded_space_of(pipeline.generator.space) is not None
    changed = changed_settings(given.decoding, pipeline.generator.decoding, causal)
    return partial(TextRecord, seed=given.seed, decoding=given.decoding, decoding_settings=changed)


if __name__ == "__main__":
    raise SystemExit(main())
