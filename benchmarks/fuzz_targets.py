"""Random and damaged inputs for all that reads one, and the code that reads them: the targets of benchmarks/fuzz.py.

Files of texts, command lines, configurations, run folders, language models, calls from Python.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error, user_message

Strategy = st.SearchStrategy[Any]


# ------------------------------------------------------------------------------------------------------------ oracle


def outcome(read: Callable[[], Any]) -> str:
    """read, or refused in one line. Any other exception is raised: it is a finding."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            read()
        except UserError as error:
            _check_line(error)
            return "refused"
        except OSError as error:
            if error.filename is None and "annot be read" not in str(error):
                raise
            _check_line(error)
            return "refused"
        except SystemExit as error:
            assert error.code in (0, 2), f"exit status {error.code}"
            return "refused"
    return "read"


def _check_line(error: BaseException) -> None:
    line = user_message(error)
    assert line and "\n" not in line, f"no line: {line!r}"
    assert len(line) < 3000, f"a line of {len(line)} characters"
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or "\ud800" <= c <= "\udfff" for c in line), repr(line)


# ------------------------------------------------------------------------------------------------------------ inputs

ODD = (
    "\0", "\ufeff", '"', "'", "\\", "\r", "\r\n", "\n", "\t", ",", ";", "|", "\u2028", "\x85", "\x1b[31m", "\u202e",
    "\ud800", "\u00a0", "\u200d", "\U0001f600", "e\u0301", "</s>", "[PAD]", "<unk>", "{", "}", "[", "]", ":", "#", "&a",
    "*a", "!!", "---", "null", "true", "NaN", "Infinity", "-1", "1e400", "9" * 30, "9" * 4400, "[" * 3000, "\ub098",
    "text", "label", "src", "trg",
)  # fmt: skip
_MARKS = (b"\xff", b"\xfe\xff", b"\xff\xfe", b"\x80", b"PAR1", b"\x1f\x8b", b"BZh9", b"\xfd7zXZ")  # of files, no UTF-8
_BYTES = [*(text.encode("utf-8", "surrogatepass") for text in ODD), *_MARKS]


@st.composite
def mutated(draw: st.DrawFn, valid: Strategy) -> bytes:
    """A valid content with one to four changes: flipped bits, cut, doubled, moved or inserted parts."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("flip", "cut", "drop", "double", "insert", "insert", "replace", "join")))
        at, length = draw(st.integers(0, max(0, len(data) - 1))), draw(st.integers(1, 40))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length]
        elif kind == "insert":
            data[at:at] = draw(st.sampled_from(_BYTES) | st.binary(max_size=6))
        elif kind == "replace":
            data[at : at + length] = draw(st.sampled_from(_BYTES))
        else:
            data += draw(valid)
    return bytes(data)


COLUMNS = st.text(max_size=6) | st.sampled_from(("text", "label", "src", "trg"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(COLUMNS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
texts = st.text(max_size=30) | st.sampled_from(("a dog ran home", "la maison est bleue", *ODD))
TEXTS = [f"the {fruit} is {color}" for fruit in ("plum", "kiwi", "bean") for color in ("red", "green", "blue")]


# --------------------------------------------------------------------------------------------------- files of texts


def _seed_files() -> dict[str, bytes]:
    """Valid files by extension."""
    import pyarrow
    import pyarrow.parquet

    labelled = [{"text": text, "label": i % 2} for i, text in enumerate(TEXTS)]
    pairs = [{"src": f"say {text}", "trg": text} for text in TEXTS]
    table, parquet = io.StringIO(), io.BytesIO()
    writer = csv.DictWriter(table, ["text", "label"])
    writer.writeheader()
    writer.writerows([*labelled, {"text": 'a "quoted", cell\nof two lines', "label": 1}])
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "label": [i % 2 for i in range(len(TEXTS))]}), parquet)
    found: dict[str, str | bytes] = {
        ".txt": "".join(text + "\n" for text in TEXTS),
        ".jsonl": "".join(json.dumps(row) + "\n" for row in labelled),
        ".json": json.dumps(pairs),
        ".csv": table.getvalue(),
        ".tsv": "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in labelled),
        ".parquet": parquet.getvalue(),
    }
    plain = {name: value if isinstance(value, bytes) else value.encode() for name, value in found.items()}
    packed: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    return plain | {f".jsonl{name}": compress(plain[".jsonl"]) for name, compress in packed.items()}


@st.composite
def structured_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file that has its format, with cells and values of any kind."""
    kind = draw(st.sampled_from((".jsonl", ".json", ".csv", ".tsv", ".txt")))
    names = draw(
        st.lists(
            st.sampled_from(("text", "label", "src", "trg", "input", "instruction", "sentence", "x")) | texts,
            max_size=3,
        )
    )
    if kind == ".txt":
        return kind, "\n".join(draw(st.lists(texts, max_size=6))).encode("utf-8", "surrogatepass")
    if kind in (".csv", ".tsv"):
        out = io.StringIO()
        separator = "," if kind == ".csv" else "\t"
        try:
            writer = csv.writer(out, delimiter=draw(st.sampled_from((separator, separator, ";", "|"))),
                                quoting=draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))),
                                lineterminator=draw(st.sampled_from(("\n", "\r\n", "\r"))))  # fmt: skip
            writer.writerows([names, *draw(st.lists(st.lists(texts, max_size=3), max_size=6))])
        except csv.Error:
            pass
        return kind, out.getvalue().encode("utf-8", "surrogatepass")
    row = st.dictionaries(st.sampled_from(names) if names else st.text(max_size=3), json_values | texts, max_size=3)
    rows = draw(st.lists(row | json_values, max_size=6))
    text = json.dumps(rows) if kind == ".json" else "\n".join(json.dumps(row) for row in rows)
    return kind, text.encode("utf-8", "surrogatepass")


def corpus_inputs() -> Strategy:
    seeds = _seed_files()
    names = sorted(seeds)
    anywhere = st.sampled_from(names)
    changed = st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), mutated(st.just(seeds[name]))))
    other = st.tuples(anywhere, mutated(anywhere.map(seeds.__getitem__)))  # with the extension of another format
    raw = st.tuples(anywhere, st.binary(max_size=300))
    files = raw | changed | changed | other | structured_files() | structured_files()
    column = st.sampled_from(("text", "label", "src", "none", "x")) | texts
    flags = st.fixed_dictionaries({}, optional={f"{name}_column": column for name in ("text", "label", "source")})
    return st.tuples(files, st.just({}) | st.just({}) | flags)


def read_corpus(case: tuple[tuple[str, bytes], dict[str, Any]], folder: Path) -> None:
    """Read the file as the training split of a corpus, with the flags of its columns."""
    from dataset_utils.options import DataOptions
    from dataset_utils.registry import load

    (suffix, data), flags = case
    path = folder / f"train{suffix}"
    path.write_bytes(data)
    corpus = load(DataOptions(train_file=str(path), **flags))
    for split in corpus.splits.values():
        assert all(isinstance(text, str) and text.strip() for text in split.texts), "a text is blank or no text"
        "".join(split.texts).encode()  # no surrogates
        assert not any("\0" in text for text in split.texts), "NUL in a text"


def read_format(case: tuple[str, bytes], folder: Path) -> None:
    """Read the file by one reader, whatever its name says."""
    from dataset_utils import readers

    name, data = case
    path = folder / "file"
    path.write_bytes(data)
    for _ in getattr(readers, name)(path):
        pass


def format_inputs() -> Strategy:
    stories = b"id,title,a,b,c,d,e\n1,t,a,b,c,d,e\n"
    seeds = [*_seed_files().values(), b"name : X | Type : Y || a text\n", b"a text\tlabel\n", stories]
    names = ("plain", "e2e", "labeled_lines", "jsonl", "json_file", "rocstories", "csv", "tsv", "parquet")
    return st.tuples(st.sampled_from(names), st.binary(max_size=200) | mutated(st.sampled_from(seeds)))


# ------------------------------------------------------------------------------------------------------ command lines

NUMBERS = (
    "0", "1", "2", "-1", "3.5", "nan", "inf", "-inf", "1e400", "1e-400", "0x10", "1_000", "", " ", "1e3", "9" * 30,
    "none", "true", "\u0663", "1,2", "ddim5", "at:1,2",
)  # fmt: skip


@cache
def programs() -> dict[str, Any]:
    from pipelines.cli import programs as module
    from utils.cli.settings import Program

    return {name: value for name, value in vars(module).items() if isinstance(value, Program)}


@cache
def flag_values(title: str, name: str) -> Strategy:
    """Values of a flag: its choices, its default, numbers, texts."""
    flag = programs()[title].flags[name]
    known = [str(choice) for choice in flag.choices or ()] + [str(flag.default), *map(str, flag.aliases)]
    return st.sampled_from(known) | st.sampled_from(NUMBERS) | st.integers().map(str) | st.floats().map(str) | texts


@st.composite
def command_lines(draw: st.DrawFn, run: str) -> tuple[str, list[str]]:
    """run: a run folder that some of them name."""
    known = programs()
    title = draw(st.sampled_from(sorted(known)))
    flags = known[title].flags
    argv: list[str] = []
    for name in draw(st.lists(st.sampled_from(sorted(flags)), max_size=5)):
        kind = draw(st.integers(0, 9))
        spelled = (
            name
            if kind
            else draw(st.sampled_from((name[:-1], name.upper(), name.replace("_", "-"), f"no_{name}", name + "x")))
        )
        value = draw(flag_values(title, name))
        if name in ("resume_dir", "diffusion_run", "distill_run", "latent_model_path") and draw(st.booleans()):
            value = run
        argv += (
            [f"--{spelled}={value}"]
            if draw(st.booleans())
            else [f"--{spelled}", *([] if flags[name].type is bool and kind else [value])]
        )
    argv += draw(
        st.lists(
            texts | st.sampled_from(("--", "-", "--=", "--config", "-h", "--eval", "--resume_training")), max_size=1
        )
    )
    return title, argv


def read_command_line(case: tuple[str, list[str]], folder: Path) -> None:
    from utils.cli.parse import parse

    title, argv = case
    made = parse(programs()[title], argv)
    json.dumps(made.as_dict(), allow_nan=False, ensure_ascii=False).encode()  # the record of the run
    made.describe()


SMALL = ("pipelines.sample", "pipelines.rewrite", "pipelines.infill")


@st.composite
def small_command_lines(draw: st.DrawFn, run: str) -> tuple[str, list[str]]:
    import importlib

    module = draw(st.sampled_from(SMALL))
    options = sorted(importlib.import_module(module).parser()._option_string_actions)
    argv = ["--run", draw(st.sampled_from((run, run, run, "x", "")))]
    for option in draw(st.lists(st.sampled_from(options), max_size=4)):
        argv += [option, *([draw(texts | st.sampled_from(NUMBERS))] if draw(st.booleans()) else [])]
    return module, argv


def read_small_command_line(case: tuple[str, list[str]], folder: Path) -> None:
    """Parse only: main is replaced by its parser."""
    import importlib

    from pipelines.cli.run_arguments import parse_known

    module, argv = case
    parser: OneLineParser = importlib.import_module(module).parser()
    exit_on_user_error(parse_known)(parser, argv)


@st.composite
def config_files(draw: st.DrawFn) -> tuple[str, str, bytes]:
    known = programs()
    title = draw(st.sampled_from(sorted(known)))
    program, suffix = known[title], draw(st.sampled_from((".yaml", ".json", ".yml", "")))
    name = st.sampled_from(sorted(program.flags)) | st.sampled_from(sorted(program.groups)) | texts
    value = json_values | st.sampled_from(NUMBERS)
    table = draw(st.dictionaries(name, value | st.dictionaries(name, value, max_size=2), max_size=4))
    chosen = draw(st.lists(st.sampled_from(sorted(program.flags)), max_size=6))
    valid = {name: program.flags[name].default for name in chosen}
    text = json.dumps({**table, **valid} if draw(st.booleans()) else valid, indent=draw(st.sampled_from((None, 1))))
    if suffix != ".json" and draw(st.booleans()):
        text = "".join(f"{key}: {value}\n" for key, value in valid.items())
    data = text.encode("utf-8", "surrogatepass")
    kind = draw(st.integers(0, 3))
    return (
        title,
        suffix,
        draw(mutated(st.just(data))) if kind == 0 else draw(st.binary(max_size=80)) if kind == 1 else data,
    )


def read_config_file(case: tuple[str, str, bytes], folder: Path) -> None:
    title, suffix, data = case
    path = folder / f"config{suffix}"
    path.write_bytes(data)
    read_command_line((title, ["--config", str(path)]), folder)


# -------------------------------------------------------------------------------------------------------- run folders

RUN = (
    "--latent_space embeddings --embedding_dim 8 --timesteps 20 --max_seq_len 8 --tx_dim 64 --tx_depth 1 --device cpu "
    "--train_batch_size 4 --eval_batch_size 4 --sampling_timesteps 2 --num_samples 4 --num_train_steps 2 --log_every 1 "
    "--save_and_sample_every 1000 --save_every 1 --lr_warmup_steps 1 --class_conditional"
)


def train_run(folder: Path) -> Path:
    """Train a tiny run of token embeddings with classes, in a second or two; returns its folder."""
    from evaluation import local_lm
    from pipelines.cli.programs import DIFFUSION
    from pipelines.train_diffusion import train
    from utils.cli.parse import parse

    corpus, scorer = folder / "corpus.jsonl", folder / "scorer"
    corpus.write_text("".join(json.dumps({"text": t, "label": i % 2}) + "\n" for i, t in enumerate(TEXTS * 2)))
    local_lm.train_local(TEXTS, scorer, steps=2, width=16, layers=1, heads=2, vocab_size=100, max_length=16)
    files = " ".join(f"--{split}_file {corpus}" for split in ("train", "valid", "test"))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert train(parse(DIFFUSION, f"{RUN} {files} --scorer {scorer} --output_dir {folder / 'run'}".split())) == 0
    return folder / "run"


def _as_json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _edited_json(content: Mapping[str, Any]) -> Strategy:
    """A JSON object with changed, removed and added entries, also in its inner objects."""

    @st.composite
    def edit(draw: st.DrawFn) -> bytes:
        data = json.loads(json.dumps(content))
        for _ in range(draw(st.integers(1, 3))):
            place = data
            while True:
                inner = [value for value in place.values() if isinstance(value, dict) and value]
                if not inner or draw(st.booleans()):
                    break
                place = draw(st.sampled_from(inner))
            key = draw(st.sampled_from(sorted(place) or ["x"]))
            if draw(st.integers(0, 3)) == 0:
                place.pop(key, None)
            else:
                numbers = st.integers(-2, 300) | st.sampled_from((0, -1, 2**31, 2**63, 10**400, 0.5, float("nan")))
                place[key] = draw(json_values | numbers | st.sampled_from((str(place.get(key)), [place.get(key)])))
        return _as_json(data)

    return edit()


READ = (
    "args.json", "state.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "metrics.jsonl", "config.json", "generation_config.json",
)  # fmt: skip


def run_inputs(run: Path) -> Strategy:
    """(file of the folder, its content; None: removed)."""
    files = sorted(
        str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "evaluation" not in path.parts
    )
    read = [name for name in files if Path(name).name in READ]

    def contents(name: str) -> Strategy:
        data = (run / name).read_bytes()
        changed, other = mutated(st.just(data)), json_values.map(_as_json)
        kinds = [changed, changed, st.none(), st.just(b""), st.binary(max_size=50), other]
        if name.endswith(".json"):
            kinds += [_edited_json(json.loads(data))] * 6
        return st.tuples(st.just(name), st.one_of(kinds))

    return st.sampled_from(read).flatmap(contents)


def damaged_run(run: Path, case: tuple[str, bytes | None], folder: Path) -> Path:
    """A copy of the run (by hard links) in which one file has another content, or is missing."""
    name, data = case
    place = folder / "run"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(run, place, copy_function=os.link)
    (place / name).unlink()
    if data is not None:
        (place / name).write_bytes(data)
    return place


def read_run(run: Path) -> Callable[[Any, Path], None]:
    def read(case: tuple[str, bytes | None], folder: Path) -> None:
        """Load the run to sample from, and its newest checkpoint, as to resume it."""
        from pipelines.load_run import load_run
        from utils import checkpoints

        place = damaged_run(run, case, folder)
        found = load_run(place, device="cpu")
        checkpoints.load(place)
        assert all(bool(x.isfinite().all()) for x in found.components.model.parameters()), "weights that are no numbers"

    return read


def resume_run(run: Path) -> Callable[[Any, Path], None]:
    def resume(case: tuple[str, bytes | None], folder: Path) -> None:
        """Resume the training of the run, where the damage has not made it a long or large one."""
        from pipelines.cli.programs import DIFFUSION
        from pipelines.train_diffusion import train
        from utils.cli.parse import parse

        place = damaged_run(run, case, folder)
        made = parse(DIFFUSION, ["--resume_training", "--resume_dir", str(place), "--device", "cpu"])
        loop, evaluation = made.config.loop, made.config.evaluation
        sizes = (loop.num_train_steps, loop.train_batch_size, loop.gradient_accumulation_steps, evaluation.num_samples,
                 evaluation.eval_batch_size, made.config.sampling.sampling_timesteps)  # fmt: skip
        if all(size <= 20 for size in sizes):
            train(made)

    return resume


# ------------------------------------------------------------------------------------- language models, Python's calls


def save_model(folder: Path) -> Path:
    """Save a tiny BART with its tokenizer; returns its folder."""
    from transformers import BartConfig, BartForConditionalGeneration

    from latent_models.tokenizers.training import train_tokenizer

    tokenizer = train_tokenizer(TEXTS, "bpe", 300, 16)
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
        decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=16, bos_token_id=0,
        pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def read_model(model: Path) -> Callable[[Any, Path], None]:
    def read(case: tuple[str, bytes | None], folder: Path) -> None:
        from latent_models.language_models import LanguageModel
        from latent_models.tokenizers.files import load_tokenizer

        place = damaged_run(model, case, folder)
        LanguageModel.from_pretrained(str(place))
        load_tokenizer(str(place), 16)

    return read


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, list[Any], dict[str, Any]]:
    """A method of TextDiffusionPipeline and its arguments."""
    value = (
        json_values
        | st.binary(max_size=3)
        | st.sets(texts, max_size=2)
        | st.sampled_from((0, 1, 2, "0", "1", 1.0, True, -1, 10**30))
    )
    words = st.sampled_from((*TEXTS, "the ___ is red", "[blank:2] plum", "[PAD] plum", "plum " * 30)) | texts
    given_texts = st.lists(words, min_size=1, max_size=3) | st.lists(words | value, max_size=3) | value
    method, first = draw(st.sampled_from((
        ("sample", st.integers(1, 3) | value), ("variations", given_texts), ("infill", given_texts),
        ("encode", given_texts), ("interpolate", words | value), ("trajectory", st.integers(1, 2) | value),
        ("candidates", given_texts), ("decode", value), ("edit", given_texts),
    )))  # fmt: skip
    arguments = [draw(first)] + ([draw(words | value)] if method == "interpolate" else [])
    names = {
        "sample": ("seed", "decoding", "class_id", "guidance"), "variations": ("k", "strength", "class_id", "seed"),
        "interpolate": ("n", "strength", "invert"), "edit": ("k", "weight", "strength"),
        "trajectory": ("snapshots", "class_id"), "infill": ("k", "seed"),
    }.get(method)  # fmt: skip
    chosen = draw(st.lists(st.sampled_from(names), max_size=2, unique=True)) if names else []
    both = {name: draw(words | given_texts) for name in ("add", "remove")} if method == "edit" else {}
    return method, arguments, both | {name: draw(value) for name in chosen}


def call_method(run: Path) -> Callable[[Any, Path], None]:
    @cache
    def pipeline() -> Any:
        from pipelines.text_diffusion import TextDiffusionPipeline

        return TextDiffusionPipeline.from_pretrained(run, device="cpu", eval_batch_size=4)

    def call(case: tuple[str, list[Any], dict[str, Any]], folder: Path) -> None:
        method, arguments, options = case
        sizes = [v for v in (*arguments, *options.values()) if isinstance(v, int) and 1000 < v <= 10_000_000]
        if not sizes:  # a right number of texts that would take minutes
            getattr(pipeline(), method)(*arguments, **options)

    return call


# ---------------------------------------------------------------------------------------------------------- the runs


@dataclass
class Target:
    """Inputs of one kind, and the code that reads them."""

    name: str
    inputs: Strategy
    read: Callable[[Any, Path], None]
    share: float  # of all inputs
    outcomes: Counter[str] = field(default_factory=Counter)


def make_targets(run: Path, model: Path) -> list[Target]:
    """run: a trained run, see train_run. model: a language model, see save_model."""
    return [
        Target("corpus files", corpus_inputs(), read_corpus, 0.27),
        Target("readers", format_inputs(), read_format, 0.43),
        Target("command lines", command_lines(str(run)), read_command_line, 0.14),
        Target("small programs", small_command_lines(str(run)), read_small_command_line, 0.03),
        Target("configurations", config_files(), read_config_file, 0.08),
        Target("run folders", run_inputs(run), read_run(run), 0.02),
        Target("resumed runs", run_inputs(run), resume_run(run), 0.002),
        Target("language models", run_inputs(model), read_model(model), 0.007),
        Target("calls from Python", calls(), call_method(run), 0.02),
    ]
