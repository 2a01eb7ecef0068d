"""The study of real text: systems of equal wall time on one corpus, and one table of what several judges say of them.

    python benchmarks/real_text.py --corpus flickr30k --data_dir DATA --minutes 60 --output_dir runs/flickr30k \\
        --language_model models/smollm2-135m --encoder_model models/minilm-l6 corpus recipe causal-lm published table
    python benchmarks/real_text.py --output_dir runs/flickr30k table --texts mine=samples.txt
    python benchmarks/real_text.py --output_dir runs/flickr30k table --runs "mine=runs/my_recipe --decoder_noise 0"

Words name what is done, in their order: corpus divides the corpus (benchmarks/real_text_corpus.py), judge trains the
judge that is part of no system, a row trains a system (benchmarks/real_text_rows.py), table samples what is trained and
judges it; `all` is everything. A row that is trained, sampled or judged before is not repeated, and an interrupted one
goes on; one that fails does not stop the others. --texts and --runs add texts and runs that were made elsewhere,
without training anything; train them on DIR/corpus/train.jsonl, or the judge may know texts of theirs.

Judges: a pretrained language model (--scorer), a sentence encoder (--mauve_encoder), and a language model that is
trained from scratch on texts that no system sees; linear AUC, diversity, memorization, copies and lengths need no
network. A judge that is a part of a system is marked. It writes scores.json, table.md, log.txt, samples-{row}.txt, the
texts of the first seed, one a line, and asked.jsonl, the class or the source of each, where the corpus has them.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.real_text_corpus import (
    CLASS,
    CORPORA,
    SOURCE,
    Parts,
    is_training_part,
    make_parts,
    read_parts,
    write_parts,
)
from benchmarks.real_text_rows import (
    DONE,
    ENCODER,
    LANGUAGE_MODEL,
    ROWS,
    Models,
    RowFailed,
    check_models,
    sampled_run,
    train_row,
    training_order,
)
from benchmarks.real_text_table import facts_of_run, make_table
from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.run_folder import write_json, write_text
from utils.terminal import aligned, single_line

if TYPE_CHECKING:
    from benchmarks.real_text_judges import Judges

SCORES, LOG, ASKED = "scores.json", "log.txt", "asked.jsonl"


def parser() -> ArgumentParser:
    made = OneLineParser(
        prog="python benchmarks/real_text.py",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("what", nargs="+", choices=("corpus", "judge", *ROWS, "table", "all"), metavar="WHAT",
        help=f"corpus, judge, table, all, or rows: {', '.join(ROWS)}")  # fmt: skip
    add("--output_dir", type=Path, required=True, metavar="DIR", help="folder of the study of one corpus")
    add("--corpus", choices=tuple(CORPORA), help="for corpus: which one")
    add("--data_dir", type=Path, metavar="FOLDER", help="for corpus: the folder that holds the corpora")
    add("--max_train_texts", type=int, help="for corpus: use the first so many training texts")
    add("--minutes", type=float, default=60.0, help="wall time of a row, all its stages together (default: 60)")
    add("--language_model", metavar="MODEL", help="pretrained causal language model of the rows: a folder or a hub id")
    add("--encoder_model", metavar="MODEL", help="pretrained encoder of the rows: a folder or a hub id")
    add(
        "--row_flags", action="append", default=[], metavar="ROW=FLAGS", help='more flags of a row: "recipe=--tx_dim 9"'
    )
    add("--scorer", metavar="MODEL", help="language model that judges; none for none (default: --language_model)")
    add("--mauve_encoder", metavar="MODEL", help="encoder that judges; none for none (default: --encoder_model)")
    add(
        "--own_judge_steps",
        type=int,
        default=None,
        help="steps of the judge that is trained; 0 for none (default: 3000, at most five passes over its texts)",
    )
    add("--num_samples", type=int, default=1000, help="texts of a row and seed (default: 1000)")
    add("--seeds", type=int, default=5, help="number of seeds, from 42 on (default: 5)")
    add("--texts", action="append", default=[], metavar="NAME=FILE[,FILE]", help="for table: texts of a system, one a "
        "line, of a corpus with classes or sources in the order of DIR/asked.jsonl; one file a seed, or one that is "
        "compared with other references for each seed")  # fmt: skip
    add(
        "--runs",
        action="append",
        default=[],
        metavar="NAME=FOLDER [FLAGS]",
        help="for table: a run, or a folder of "
        'the recipe, and flags of its sampling: "mine=runs/mine --decoder_candidates 4"',
    )
    add("--only", nargs="+", metavar="NAME", help="for table: judge these rows alone, and leave the others as they are")
    return made


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    for flag, least in (("num_samples", 2), ("seeds", 1)):
        if getattr(args, flag) < least:
            raise UserError(f"--{flag} {getattr(args, flag)} is too small: give {least} or more")
    if not args.minutes > 0:
        raise UserError(f"--minutes {args.minutes:g} is no time: give more than 0")
    study = Study(args, [*(sys.argv[1:] if argv is None else argv)])
    wanted = ["corpus", "judge", *training_order(), "table"] if "all" in args.what else list(dict.fromkeys(args.what))
    check_models([what for what in wanted if what in ROWS], study.root, study.models)
    failed = []
    for what in wanted:
        try:
            study.do(what)
        except RowFailed as error:
            if len(wanted) == 1:
                raise
            study.log(f"error: {error}")
            failed.append(what)
    if failed:
        raise UserError(f"not trained: {', '.join(failed)} (see above): repeat the command to go on with them")
    return 0


class Study:
    """The folder of a corpus: its parts, its trained rows, their texts and scores."""

    def __init__(self, args: Namespace, argv: Sequence[str]) -> None:
        self.args, self.root = args, args.output_dir.resolve()
        self.root.mkdir(parents=True, exist_ok=True)
        self.models = Models(
            _from_here(args.language_model),
            _from_here(args.encoder_model),
            more_flags=dict(_named(args.row_flags, "row_flags")),
        )
        unknown = [name for name in self.models.more_flags or {} if name not in ROWS]
        if unknown:
            raise UserError(f"--row_flags {unknown[0]}=...: there is no such row: give one of {', '.join(ROWS)}")
        self.command = shlex.join(["python", "benchmarks/real_text.py", *argv])
        self.log(self.command)

    def log(self, line: str) -> None:
        """Print a line, and keep it in log.txt."""
        print(line, flush=True)
        with (self.root / LOG).open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%H:%M:%S')}  {line}\n")

    @cached_property
    def parts(self) -> Parts:
        return read_parts(self.root / "corpus")

    def do(self, what: str) -> None:
        """One word of the command line."""
        if what == "corpus":
            self.make_corpus()
        elif what == "judge":
            self.judges()
        elif what == "table":
            self.make_table()
        else:
            condition = ROWS[what].condition
            if "all" in self.args.what and condition not in (None, self.parts.condition):
                self.log(f"{what}: left out, since it needs a corpus by {condition}")
                return
            began = time.monotonic()
            train_row(what, self.root, self.parts, self.models, self.args.minutes)
            self.log(f"{what}: {time.monotonic() - began:.0f} s")

    def make_corpus(self) -> None:
        folder = self.root / "corpus"
        if (folder / "parts.json").is_file():
            self.log(f"corpus: {folder} is there")
            return
        if self.args.corpus is None or self.args.data_dir is None:
            raise UserError("corpus needs --corpus NAME and --data_dir FOLDER")
        made = make_parts(
            CORPORA[self.args.corpus], self.args.data_dir, self.args.num_samples, self.args.max_train_texts
        )
        write_parts(made, folder)
        self.log("corpus: " + ", ".join(f"{len(split):,} {name}" for name, split in made.splits.items()))

    # ---- judging -------------------------------------------------------------------------------------------------

    def judges(self) -> Judges:
        """All judges; the one that is trained here is trained unless it is there."""
        from benchmarks.real_text_judges import Judges

        scorer, encoder = self.pretrained_judges.values()
        return Judges(self.root, self.parts, scorer, encoder, self.log, self.args.own_judge_steps)

    @cached_property
    def pretrained_judges(self) -> dict[str, str | None]:
        """The part of a system that it may be -> a model that judges, None without one."""
        args = self.args
        return {
            part: None if (named or "").lower() == "none" else named or default or _found(expected)
            for part, named, default, expected in (
                (LANGUAGE_MODEL, args.scorer, args.language_model, "smollm2-135m"),
                (ENCODER, args.mauve_encoder, args.encoder_model, "minilm-l6"),
            )
        }

    def make_table(self) -> None:
        """Sample and judge every row that is there, then write the table."""
        from benchmarks.real_text_samples import HUMAN, human_texts, what_is_asked
        from evaluation import report
        from evaluation.score.scoring import SEEDS_FROM

        args, parts = self.args, self.parts
        self._check_num_samples()
        asked = what_is_asked(parts, args.num_samples)
        asked.write(self.root / ASKED)
        sources = self._sources_of_texts(asked)  # before the judges: a wrong name must not cost minutes
        stranger = next((name for name in args.only or () if name not in sources), None)
        if stranger is not None:
            raise UserError(f"--only {stranger}: there is nothing of that name: choose from {', '.join(sources)}")
        judges = self.judges()
        protocol = judges.protocol() | {
            "num_samples": args.num_samples, "seeds": [SEEDS_FROM + i for i in range(args.seeds)]
        }  # fmt: skip
        stored = self._stored(protocol)
        rows: dict[str, Any] = dict(stored["rows"])
        for name, load in sources.items():
            if args.only and name not in args.only:
                continue
            texts, facts = load()
            identity = facts.pop("identity")
            if rows.get(name, {}).get("identity") == identity:
                self.log(f"{name}: judged before")
                continue
            self.log(f"{name}: judging {len(texts)} x {len(texts[0])} texts")
            wanted = asked
            if name == HUMAN:
                wanted = human_texts(parts, asked, args.seeds)[1]
            metrics = judges.score(texts, args.seeds, wanted.labels, wanted.examples)
            metrics.pop("protocol", None)  # that of every seed is the protocol of the table
            rows[name] = {"identity": identity, **facts, "metrics": metrics, "texts": texts[0][:3]}
            write_text(self.root / f"samples-{_file_name(name)}.txt", "".join(single_line(t) + "\n" for t in texts[0]))
            stored = {"command": self.command, "protocol": protocol, "judges": judges.keys(), "rows": rows}
            write_json(self.root / SCORES, report.nan_to_none(stored))
        if not rows:
            raise UserError("there is nothing to judge: train a row, or name --texts or --runs")
        made = make_table(rows, judges.keys(), parts.condition)
        write_text(self.root / "table.md", made.markdown(judges.describe(args.num_samples, args.seeds)))
        self.log("\n" + aligned(made.lines) + made.notes)
        self.log(f"written to {self.root}: {SCORES}, table.md, samples-*.txt")

    def _check_num_samples(self) -> None:
        """UserError for more texts than the corpus has references: hours of sampling come before their comparison."""
        held_out, condition = self.parts["test"], self.parts.condition
        most = len(set(held_out.sources or ())) if condition == SOURCE else len(held_out)
        if condition not in (SOURCE, CLASS):
            most = min(most, len(self.parts["human"]))
        if self.args.num_samples > most:
            raise UserError(
                f"--num_samples {self.args.num_samples}: this corpus was divided for {most} texts: lower it, or divide "
                "the corpus anew, in another --output_dir"
            )

    def _stored(self, protocol: Mapping[str, Any]) -> dict[str, Any]:
        """scores.json, if its rows were judged under the same protocol; UserError for another one."""
        path = self.root / SCORES
        if not path.is_file():
            return {"rows": {}}
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(protocol))
        for key in now:
            if found["protocol"].get(key) != now[key]:
                raise UserError(
                    f"{path} holds rows under another protocol: {key} differs: name another --output_dir, or remove it"
                )
        return found

    def _sources_of_texts(self, asked: Any) -> dict[str, Any]:
        """Row -> a function that returns its texts for each seed, and facts about it."""
        from benchmarks.real_text_samples import HUMAN

        found: dict[str, Any] = {}
        for name in ROWS:
            folder = self.root / "rows" / name
            if (folder / DONE).is_file():
                found[name] = partial(self._of_run, name, sampled_run(folder), asked)
        for name, given in _named(self.args.runs, "runs"):
            folder, flags = _folder_and_flags(name, given)
            found[name] = partial(self._of_run, name, sampled_run(folder), asked, flags)
        for name, files in _named(self.args.texts, "texts"):
            found[name] = partial(self._of_files, name, files, asked.n)
        return {**found, HUMAN: lambda: self._of_humans(asked)}

    def _of_humans(self, asked: Any) -> tuple[list[list[str]], dict[str, Any]]:
        from benchmarks.real_text_samples import human_texts

        return human_texts(self.parts, asked, self.args.seeds)[0], {"identity": "human", "parts": []}

    def _of_run(
        self, name: str, folder: Path, asked: Any, flags: Sequence[str] = ()
    ) -> tuple[list[list[str]], dict[str, Any]]:
        from benchmarks.real_text_samples import newest_checkpoint, texts_of_run
        from evaluation.score.scoring import SEEDS_FROM

        keep = self.root / "texts" / f"{_file_name(name)}.json"
        keep.parent.mkdir(exist_ok=True)
        self.log(" ".join([f"{name}: sampling from {folder}", *flags]))
        texts = texts_of_run(folder, asked, [SEEDS_FROM + i for i in range(self.args.seeds)], keep, self.log, flags)
        parts = ROWS[name].parts if name in ROWS else None
        facts = facts_of_run(folder, parts, _typed_decoder(flags), self.pretrained_judges)
        folder, row = folder.resolve(), self.root / "rows" / name
        train_file = facts.pop("train_file")  # as it was typed: a study that was moved has it in another place
        if not folder.is_relative_to(row) and not is_training_part(train_file, self.root / "corpus"):
            facts["elsewhere"] = True
        if folder.is_relative_to(row) and (row / DONE).is_file():
            facts["minutes"] = json.loads((row / DONE).read_text(encoding="utf-8")).get("minutes")
        place = f"{folder.parent.name}/{folder.name}" if folder.is_relative_to(self.root) else str(folder)
        identity = " ".join([f"{place} step {newest_checkpoint(folder)}", *flags])
        return texts, {"identity": identity, **({"flags": shlex.join(flags)} if flags else {}), **facts}

    def _of_files(self, name: str, files: str, n: int) -> tuple[list[list[str]], dict[str, Any]]:
        from hashlib import sha256

        from evaluation.score.__main__ import read

        texts = [read(Path(file), "samples").first() for file in files.split(",")]
        if len(texts) not in (1, self.args.seeds):
            raise UserError(f"--texts {name}: {len(texts)} files for {self.args.seeds} seeds: give one, or one a seed")
        short = next((rows for rows in texts if len(rows) < n), None)
        if short is not None:
            raise UserError(f"--texts {name}: {len(short)} texts are fewer than --num_samples {n}: lower it")
        texts = [rows[:n] for rows in texts]
        digest = sha256(json.dumps(texts).encode()).hexdigest()[:16]
        parts = list(ROWS[name].parts) if name in ROWS else []
        return texts, {"identity": f"texts {digest}", "parts": parts, "files": [Path(f).name for f in files.split(",")]}


def _found(name: str) -> str | None:
    from utils.local_models import find_model

    folder = find_model(name)
    return str(folder) if folder else None


def _typed_decoder(flags: Sequence[str]) -> Path | None:
    """The run of a decoder that flags of sampling name; None if they name none."""
    decoder = ArgumentParser(add_help=False, allow_abbrev=False)
    decoder.add_argument("--latent_model_path", type=Path)
    named: Path | None = decoder.parse_known_args(list(flags))[0].latent_model_path
    return named


def _from_here(model: str | None) -> str | None:
    """A model of the rows, whose programs run in another folder: an absolute path, or a hub id as it is."""
    return str(Path(model).resolve()) if model is not None and Path(model).is_dir() else model


def _folder_and_flags(name: str, given: str) -> tuple[Path, list[str]]:
    """The folder of --runs, whose name may hold blanks, and the flags behind it."""
    if Path(given).is_dir():
        return Path(given), []
    try:
        place, *flags = shlex.split(given)
    except ValueError as error:
        raise UserError(f"--runs {name}={given}: {error}") from None
    if not Path(place).is_dir():
        raise UserError(f"--runs {name}={place}: there is no such folder")
    return Path(place), flags


def _named(given: Sequence[str], flag: str) -> list[tuple[str, str]]:
    """NAME=VALUE of each; UserError for another form and for a name that is given twice."""
    pairs = []
    for one in given:
        name, equals, value = one.partition("=")
        if not (equals and name.strip() and value):
            raise UserError(f"--{flag} {one}: give NAME=VALUE")
        pairs.append((name, value))
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--{flag}: {twice} is named twice: give each another name")
    return pairs


def _file_name(name: str) -> str:
    from benchmarks.systems import file_name

    return file_name(name)


if __name__ == "__main__":
    raise SystemExit(main())
