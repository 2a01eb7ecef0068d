"""The study of real text: how a corpus is divided, what is asked of every system, judges, the table, and tiny rows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from benchmarks import real_text, real_text_rows, real_text_samples
from benchmarks.real_text_corpus import (
    CORPORA,
    PARTS,
    SOURCE,
    CorpusRow,
    Parts,
    divide,
    is_training_part,
    make_parts,
    read_parts,
    write_parts,
)
from benchmarks.real_text_judges import coverage, lengths, steps_of_judge
from benchmarks.real_text_rows import (
    BASELINES,
    ENCODER,
    LANGUAGE_MODEL,
    ROWS,
    Models,
    baseline_command,
    reused_row,
    row_flags,
    sequence_length,
    train_row,
)
from benchmarks.real_text_samples import Asked, human_texts, texts_of_run, what_is_asked
from benchmarks.real_text_table import MARK, facts_of_run, make_table
from dataset_utils import synthetic_stories
from dataset_utils.splits import Split
from pipelines.recipe.arguments import check_arguments
from pipelines.recipe.arguments import parser as recipe_parser
from tests.tiny_models import tiny_encoder
from utils import checkpoints
from utils.cli.parse import parse
from utils.errors import UserError
from utils.run_folder import write_json

PLAIN = CorpusRow("train.txt", "valid.txt", block=5)
ROOT = Path(__file__).resolve().parents[1]


def texts(first: int, n: int) -> list[str]:
    return [f"text number {i}" for i in range(first, first + n)]


def test_no_text_is_in_two_parts_and_blocks_stay_whole():
    row = CorpusRow("train.txt", "valid.txt")
    parts = divide(Split(texts(0, 1000)), Split(texts(5000, 45)), row, 20)
    sizes = {"train": 750, "valid": 100, "test": 22, "human": 23, "judge": 150}
    assert {name: len(parts[name]) for name in PARTS} == sizes
    seen = [text for name in PARTS for text in parts[name].texts]
    assert len(seen) == len(set(seen)) == 1045
    few = divide(Split(texts(0, 1000)), Split(texts(5000, 30)), row, 20)  # too few for human texts, too
    assert len(few["test"]) == 30 and len(few["human"]) == 20
    for name in PARTS:  # at random: of 1,000 rows in order, those of a part would be neighbors
        numbers = [int(text.split()[-1]) for text in parts[name].texts if not text.startswith("text number 50")]
        assert not numbers or max(numbers) - min(numbers) > 800, name
    assert parts == divide(Split(texts(0, 1000)), Split(texts(5000, 45)), row, 20), "always the same ones"
    none = divide(Split(texts(0, 1000)), Split(texts(5000, 5)), row, 20)
    assert len(none["test"]) == len(none["human"]) == 20 and not set(none["test"].texts) & set(none["train"].texts)


def test_files_of_other_subjects_are_mixed_before_they_are_divided():
    """Else references would be of another distribution than all that is compared with them."""
    row = CorpusRow("train.txt", "valid.txt", mixed=True)
    parts = divide(Split(texts(0, 800)), Split(texts(5000, 200)), row, 100)
    seen = [text for name in PARTS for text in parts[name].texts]
    assert len(seen) == len(set(seen)) == 1000
    assert {name: len(parts[name]) for name in ("test", "human", "judge")} == {"test": 100, "human": 100, "judge": 150}
    for name in PARTS:
        share = sum("number 5" in text and len(text.split()[-1]) == 4 for text in parts[name].texts) / len(parts[name])
        assert 0.08 < share < 0.35, name


def test_the_own_judge_passes_at_most_five_times_over_its_texts():
    assert [steps_of_judge(texts) for texts in (20_805, 19_200, 1_490, 3)] == [3000, 3000, 232, 1]


def test_references_and_human_texts_are_at_most_one_of_a_block_in_equal_places_and_parts_share_none():
    """Blocks of five, of which every seventh lacks a text, so that the rows of a block may begin anywhere."""
    rows = [f"text {block} {i}" for block in range(600) for i in range(4 if block % 7 == 0 else 5)]
    held = [f"text {block} {i}" for block in range(1000, 1010) for i in range(5)]
    parts = divide(Split(rows), Split(held), PLAIN, 10)  # ten images are held out, 20 are needed
    blocks = {name: [int(text.split()[1]) for text in parts[name].texts] for name in PARTS}
    assert blocks["test"][:9] == [*range(1000, 1005), *range(1006, 1010)]
    for name in ("test", "human"):
        assert len(blocks[name]) == len(set(blocks[name])) >= 15, "at most one of each"
        places = [int(text.split()[2]) for text in parts[name].texts]
        assert {places.count(place) for place in range(5)} <= {2, 3, 4, 5}, "captions of an image may be sorted"
    sets = {name: set(numbers) for name, numbers in blocks.items()}
    shared = [sets[a] & sets[b] for i, a in enumerate(PARTS) for b in PARTS[i + 1 :]]
    assert sum(map(len, shared)) <= 4, "at most one where one part ends and the next begins"
    assert max(sets["human"]) - min(sets["human"]) > 100, "runs are drawn from the whole file"


def test_training_texts_that_stand_in_another_part_are_dropped():
    train = Split(texts(0, 1000) + texts(5000, 3) + texts(2000, 400))
    parts = divide(train, Split(texts(5000, 40)), PLAIN, 20)
    assert not set(parts["train"].texts) & {text for name in PARTS[1:] for text in parts[name].texts}
    assert len(divide(train, Split(texts(5000, 40)), PLAIN, 20, most_train=50)["train"]) == 50
    with pytest.raises(UserError, match="too few"):
        divide(Split(texts(0, 30)), Split(texts(0, 40)), CorpusRow("train.txt", "valid.txt"), 20)
    with pytest.raises(UserError, match="12 references are fewer than --num_samples 20"):
        divide(Split(texts(0, 30)), Split(texts(0, 40)), PLAIN, 20)


def test_sources_stay_whole_and_the_human_text_is_one_of_their_references():
    sources = [f"source {i // 3}" for i in range(600)]
    held = Split(texts(5000, 60), sources=[f"held {i // 3}" for i in range(60)])
    row = CorpusRow("a", "b", "source")
    parts = divide(Split(texts(0, 600), sources=sources), held, row, 15)
    of = {name: set(parts[name].sources or ()) for name in ("train", "valid", "judge", "test")}
    assert not of["train"] & (of["valid"] | of["judge"] | of["test"]) and len(of["test"]) == 20
    asked = what_is_asked(parts, 15)
    assert len(asked.sources or ()) == 15 and len(asked.examples.references[0]) == 3
    human, compared = human_texts(parts, asked, 5)
    places = set()
    for text, others, references in zip(human[0], compared.examples.references, asked.examples.references, strict=True):
        assert text not in others and sorted([text, *others]) == sorted(references)
        places.add(references.index(text))
    assert places == {0, 1, 2}, "the place of a reference in the file may tell of what kind it is"
    with pytest.raises(UserError, match="20 sources, fewer"):
        divide(Split(texts(0, 600), sources=sources), held, row, 21)


def test_every_system_is_asked_for_the_classes_of_the_references(tmp_path):
    split = Split(texts(0, 300), labels=[i % 3 == 0 for i in range(300)])
    parts = Parts("class", dict.fromkeys(PARTS, split), ("a", "b"))
    asked = what_is_asked(parts, 60)
    assert asked == what_is_asked(parts, 60) and 10 <= sum(asked.labels) <= 30
    asked.write(tmp_path / "asked.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    assert [row["class"] for row in rows] == asked.classes
    human, _ = human_texts(parts, asked, 2)
    label = dict(zip(split.texts, split.labels, strict=True))
    assert [label[text] for text in human[0]] == asked.labels and human[0] != human[1]
    write_parts(parts, tmp_path)
    back = read_parts(tmp_path)
    assert back.class_names == ("a", "b") and back["train"].texts == split.texts
    assert back["train"].labels == [int(x) for x in split.labels]
    with pytest.raises(UserError, match="run the row corpus first"):
        read_parts(tmp_path / "other")


def test_the_training_part_of_a_study_may_be_copied(tmp_path):
    part, copy, other = (tmp_path / name / "train.jsonl" for name in ("study", "copy", "other"))
    for file, text in ((part, "{1}"), (copy, "{1}"), (other, "{2}")):
        file.parent.mkdir()
        file.write_text(text)
    assert is_training_part(str(part), tmp_path / "study") and is_training_part(str(copy), tmp_path / "study")
    for file in (str(other), str(tmp_path / "gone.jsonl"), None):
        assert not is_training_part(file, tmp_path / "study")


def test_a_corpus_is_read_by_its_row(tmp_path):
    (tmp_path / "coco").mkdir()
    for name, n in (("train", 400), ("valid", 60)):
        (tmp_path / f"coco/{name}.txt").write_text("".join(f"{name} {text}\n" for text in texts(0, n)))
    parts = make_parts(CORPORA["coco"], tmp_path, 30)
    assert len(parts["test"]) == len(parts["human"]) == 30 and parts["train"].labels is None
    with pytest.raises(UserError, match="--data_dir names the folder"):
        make_parts(CORPORA["yelp"], tmp_path, 30)


def test_coverage_counts_concepts_by_stem_and_names_of_attributes():
    assert coverage("ski mountain skier", "Skiers are skiing down the mountains.") == 1
    assert coverage("wag tail dog", "The cat wagged it.") == pytest.approx(1 / 3)
    source = "name[The Vaults], eatType[pub], near[Café Adriatic]"
    assert coverage(source, "the vaults is a pub.") == 0.5
    assert coverage("a question of more than eight words is no list", "text") is None
    assert lengths(["a b", "a b c d"]) == {"words": 3, "words_deviation": 1}


def test_a_judge_that_is_a_part_of_the_system_is_marked():
    metrics = {"lm_test_mauve": {"mean": 0.9, "std": 0.01}, "own_judge/mauve": {"mean": 0.8, "std": 0.0}}
    rows = {
        "recipe": {
            "metrics": metrics,
            "parts": [LANGUAGE_MODEL],
            "texts": ["a|b", "c"],
            "decoder": {"decoder/greedy/similarity": 0.7, "decoder/greedy/bleu": 0.2},
        },
        "human": {"metrics": metrics, "parts": [], "texts": ["d"]},
    }
    made = make_table(rows, {"scorer": "lm", "encoder": ""}, "plain")
    assert made.lines[0] == ["system", "MAUVE, language model", "MAUVE, own judge"]
    assert made.lines[1] == ["recipe", "0.900 ± 0.010" + MARK, "0.800"] and MARK not in "".join(made.lines[2])
    page = made.markdown("The protocol.")
    assert "| recipe | 0.70* |" in page and "| 0.20 |" in page and "- a|b\n- c" in page and "flatters" in page
    assert f"\n\n{MARK} By the encoder that makes the latents" in page.partition("What latents decide")[2]
    assert "wall time" not in made.notes
    rows = {**rows, **{name: {**rows["recipe"], "minutes": minutes} for name, minutes in (("a", 60.0), ("b", 0.5))}}
    notes = make_table(rows, {"scorer": "lm", "encoder": ""}, "plain").notes
    assert "same wall time, in minutes: a 60, b 0.5" in notes
    assert "flatters" not in make_table({"human": rows["human"]}, {"scorer": "lm", "encoder": ""}, "plain").notes


def test_a_model_that_a_recipe_trained_is_no_pretrained_part(tmp_path):
    run, own = tmp_path / "out/diffusion", str(tmp_path / "out/causal_lm/model")
    write_json(tmp_path / "out/recipe.json", {})
    write_json(run / "args.json", {"schema_version": 2})
    for decoder, encoder, parts in (
        (own, own, []),
        ("hub/lm", own, [LANGUAGE_MODEL]),
        ("hub/lm", "hub/lm", [LANGUAGE_MODEL]),  # its own states: an encoder that judges is another model
        ("hub/lm", "hub/encoder", [LANGUAGE_MODEL, ENCODER]),
        (own, str(tmp_path / "minilm"), [ENCODER]),
    ):
        args = {"schema_version": 2, "decoder_model": decoder, "encoder_model": encoder}
        write_json(tmp_path / "out/decoder/args.json", args)
        assert facts_of_run(run)["parts"] == parts


def test_a_judge_with_other_weights_is_no_part_of_the_system(tmp_path):
    """By the files of weights: the same model may lie in another folder, and a folder that is gone decides nothing."""
    run = tmp_path / "out/diffusion"
    write_json(tmp_path / "out/recipe.json", {})
    write_json(run / "args.json", {"schema_version": 2})
    for name, weights in (("lm", b"123"), ("copy", b"123"), ("another", b"124"), ("larger", b"1234")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    args = {"schema_version": 2, "decoder_model": str(tmp_path / "lm"), "encoder_model": "hub/encoder"}
    write_json(tmp_path / "out/decoder/args.json", args)
    for judge, is_part in (("lm", True), ("copy", True), ("another", False), ("larger", False), ("gone", True)):
        judges = {LANGUAGE_MODEL: str(tmp_path / judge), ENCODER: "hub/other"}
        for parts in (None, (LANGUAGE_MODEL, ENCODER)):
            found = facts_of_run(run, parts, judges=judges)["parts"]
            assert found == [LANGUAGE_MODEL, ENCODER][not is_part :]
    given = {LANGUAGE_MODEL: None, ENCODER: None}
    assert facts_of_run(run, judges=given)["parts"] == [LANGUAGE_MODEL, ENCODER]


def test_what_latents_decide_is_read_of_decoders_and_autoencoders(tmp_path):
    """The run of the latents that a denoiser names, or that beside it, with the encoder that compared its texts."""
    numbers = {"decoder/greedy/similarity": 0.7, "decoder/greedy/bleu": 0.25, "decoder/share_of_latents": 0.5}
    named = {"other": str(tmp_path / "other/ae"), "recipe": "moved"}  # --latent_model_path of the denoisers
    for name in ("other/ae", "recipe/autoencoder"):
        write_json(tmp_path / name / "args.json", {"schema_version": 2, "num_encoder_latents": 4})
        is_part = name.startswith("recipe")
        similarity = {"name": "a/judge", "pooling": "latents" if is_part else "mean", "part_of_system": is_part}
        written = {**numbers, "val/loss": 1, "protocol": {"similarity": similarity}}
        write_json(tmp_path / name / "validation.json", written)
    write_json(tmp_path / "recipe/recipe.json", {})
    write_json(tmp_path / "adapted/args.json", {"schema_version": 2})
    write_json(tmp_path / "adapted/validation.json", {"decoder/greedy/similarity": 0.6})
    rows = {}
    for name, path in named.items():
        write_json(tmp_path / name / "diffusion/args.json", {"schema_version": 2, "latent_model_path": path})
        facts = facts_of_run(tmp_path / name / "diffusion")
        assert facts["decoder"] == numbers
        assert facts["similarity"]["part_of_system"] is (name == "recipe")
        typed = facts_of_run(tmp_path / name / "diffusion", decoder_run=tmp_path / "adapted")
        assert typed["decoder"] == {"decoder/greedy/similarity": 0.6}
        rows[name] = {"metrics": {}, "texts": [], **facts}
    made = make_table(rows, {"scorer": "", "encoder": ""}, "plain")
    head, other, recipe = made.latents
    cells = [dict(zip(head, line, strict=True)) for line in (other, recipe)]
    names = ("similar to its decoding", "share of latents", "BLEU of its decoding", "without latents", "compared by")
    assert [cells[0][name] for name in names] == ["0.70", "0.50", "0.25", "", "judge"]
    assert [cells[1][name] for name in names] == ["0.70*", "0.50*", "0.25", "", "its latents"]
    assert made.notes == "" and "flatters the system" in made.markdown("")
    write_json(tmp_path / "recipe/joint/args.json", {"schema_version": 2, "joint_run": "diffusion"})
    assert "decoder" not in facts_of_run(tmp_path / "recipe/joint"), "its autoencoder is another one by now"
    alone = make_table({"other": rows["other"]}, {"scorer": "", "encoder": ""}, "plain")
    assert "What latents decide" in alone.markdown("") and MARK not in alone.markdown("")


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.program == "recipe"])
def test_the_flags_of_the_rows_are_those_of_the_recipe(name, tmp_path):
    words = row_flags(name, tmp_path, Models("lm", "encoder", more_flags={name: "--tx_dim 64 --max_seq_len 40"}))
    args = recipe_parser().parse_args(["--train_file", "x", "--minutes", "1", "--output_dir", str(tmp_path), *words])
    check_arguments(args)
    assert args.tx_dim == 64 and args.max_seq_len == 40
    if ROWS[name].after:
        assert args.language_model == str(tmp_path / "rows" / ROWS[name].after / "model")


def test_first_stages_are_taken_over_from_the_trained_row_of_the_same_parts(tmp_path):
    assert all(reused_row(name, tmp_path) is None for name in ROWS), "nothing is trained yet"
    for name in ("recipe", "published"):
        write_json(tmp_path / "rows" / name / "row.json", {})
    expected = {
        "recipe-segments": "recipe",
        "recipe-flow-x0": "recipe",
        "joint": "published",
        "recipe-scratch": "published",
    }
    for name, first in expected.items():
        assert reused_row(name, tmp_path) == tmp_path / "rows" / first
    for name in (
        "recipe",
        "recipe-states",
        "published",
        "causal-lm",
        "causal-scratch",
        "causal-decoder",
        "frozen-embeddings",
    ):
        assert reused_row(name, tmp_path) is None


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.program in BASELINES])
def test_the_flags_of_the_rows_without_latents_are_those_of_their_program(name, tmp_path):
    """With a record of the probe there is none; a row for pairs is refused for another corpus."""
    parts = Parts(SOURCE, dict.fromkeys(PARTS, Split(["text"], sources=["source"])))
    models = Models("lm", "encoder", more_flags={name: "--max_seq_len 40"})
    (tmp_path / "rows").mkdir()
    record = {"steps": 500, "warmup": 20, "max_seconds": 60}
    (tmp_path / f"rows/{name}.json").write_text(json.dumps(record))
    command = baseline_command(name, tmp_path, parts, models, 1.0)
    program = BASELINES[ROWS[name].program]
    assert command[1:4] == ["-m", "pipelines.stages", program.name]
    values = parse(program, command[4:]).values
    expected = {"num_train_steps": 500, "lr_warmup_steps": 20, "eval_every": 50, "max_seq_len": 40, "max_seconds": 60}
    assert expected.items() <= values.items()
    assert values["output_dir"] == str(tmp_path / "rows" / name)
    if ROWS[name].condition is not None:
        with pytest.raises(UserError, match=f"row {name} is for a corpus by source"):
            train_row(name, tmp_path, Parts("plain", parts.splits), models, 1.0)


def test_a_baseline_that_was_interrupted_gets_the_time_that_is_left_and_no_other_flags(tmp_path):
    parts = Parts("plain", dict.fromkeys(PARTS, Split(["one text"])))
    asked = {"minutes": 1.0, "flags": row_flags("causal-scratch", tmp_path, Models(None, None))}
    record = {"steps": 500, "warmup": 20, "max_seconds": 60, "asked": asked}
    write_json(tmp_path / "rows/causal-scratch.json", record)
    write_json(tmp_path / "rows/causal-scratch.seconds.json", {"probe": 20, "training": 45})

    def command(minutes: float = 1.0, **more: str) -> list[str]:
        return baseline_command("causal-scratch", tmp_path, parts, Models(None, None, more_flags=more or None), minutes)

    assert command()[-4:-2] == ["--max_seconds", "60"], "without a checkpoint it begins again"
    (tmp_path / "rows/causal-scratch/checkpoints/step_00000100").mkdir(parents=True)
    assert command()[-1] == "15" and "--resume_training" in command()
    (tmp_path / "rows/causal-scratch/metrics.jsonl").write_text('{"step": 100, "seconds": 59.5}\n')  # of a kill
    assert command()[-1] == "1"
    for wrong in ({"minutes": 2.0}, {"causal-scratch": "--layers 2"}):
        with pytest.raises(UserError, match="other --minutes or --row_flags"):
            command(**wrong)


def test_baselines_read_whole_texts():
    assert sequence_length(["two words"] * 99 + ["word " * 500]) == 64, "the default of their programs"
    assert sequence_length(["word " * 60] * 50) == 96 and sequence_length(["word " * 900] * 3) == 256


def test_the_seconds_of_a_row_are_those_of_all_invocations(tmp_path, monkeypatch):
    parts = Parts("plain", dict.fromkeys(PARTS, Split(["one text"])))
    (tmp_path / "rows/recipe-scratch").mkdir(parents=True)
    for code, seconds in ((143, 100), (0, 200)):
        monkeypatch.setattr(real_text_rows, "_run", lambda command, code=code: code)
        write_json(tmp_path / "rows/recipe-scratch.seconds.json", {"training": seconds})
        with pytest.raises(UserError, match="ended with 143") if code else nullcontext():
            train_row("recipe-scratch", tmp_path, parts, Models(None, None), 60.0)
    assert json.loads((tmp_path / "rows/recipe-scratch/row.json").read_text())["seconds"] >= 200


PROGRAM = """
import signal, sys, time
from pathlib import Path

def save(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as utils.preemption: a second signal changes nothing
    time.sleep(0.8)
    Path(sys.argv[1]).write_text("saved")
    sys.exit(128 + number)

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, save)
Path(sys.argv[1] + ".ready").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_program_that_trains_a_row(tmp_path, number):
    """Ctrl-C reaches both processes, kill the study alone."""
    study = "import sys; from benchmarks.real_text_rows import _run; sys.exit(_run([sys.executable, *sys.argv[1:]]))"
    saved = tmp_path / "saved"
    command = [sys.executable, "-c", study, "-c", PROGRAM, str(saved)]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        while not Path(f"{saved}.ready").is_file():
            assert process.poll() is None
            time.sleep(0.05)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        code = process.wait(60)
        assert code and saved.is_file(), "it has saved before the study ends"


def test_texts_are_kept_for_their_run_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(real_text_samples, "load_run", lambda folder, *_: lambda seed: [f"{folder.name} {seed}"])
    keep, drawn = tmp_path / "texts/mine.json", list[str]()

    def train(name: str, weight: float) -> None:
        checkpoints.save(tmp_path / name, {"model": {"w": torch.full((2,), weight)}}, {"step": 10})

    def texts_of(name: str) -> list[list[str]]:
        return texts_of_run(tmp_path / name, Asked(1), [1], keep, drawn.append)

    train("a", 1.0)
    assert texts_of("a") == texts_of("a") == [["a 1"]] and len(drawn) == 1
    train("b", 1.0)
    assert texts_of("b") == [["b 1"]], "another run of the same name and step"
    shutil.rmtree(tmp_path / "b")
    train("b", 2.0)
    assert texts_of("b") == [["b 1"]] and len(drawn) == 3, "trained anew to the same step"


def test_models_are_found_from_the_folder_of_the_caller(tmp_path, monkeypatch):
    (tmp_path / "lm").mkdir()
    monkeypatch.chdir(tmp_path)
    words = "table --output_dir out --language_model lm --encoder_model hub/encoder"
    models = real_text.Study(real_text.parser().parse_args(words.split()), []).models
    assert (models.language_model, models.encoder_model) == (str(tmp_path / "lm"), "hub/encoder")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A divided corpus of small stories."""
    data, root = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("study")
    (data / "coco").mkdir()
    synthetic_stories.write(data, train=440, valid=60, test=2)
    for name in ("train", "valid"):
        rows = [json.loads(line) for line in (data / f"{name}.jsonl").read_text().splitlines()]
        (data / f"coco/{name}.txt").write_text("".join(row["text"] + "\n" for row in rows))
    assert run(root, f"corpus --corpus coco --data_dir {data}") == 0
    return root


def run(root: Path, words: str, *more: str) -> int:
    return real_text.main([*f"--output_dir {root} --num_samples 30 --seeds 2 {words}".split(), *more])


def test_texts_are_judged_alone_and_again_only_when_they_change(study, tmp_path, capsys):
    lines = (study / "corpus/train.jsonl").read_text().splitlines()[:30]
    (tmp_path / "copies.txt").write_text("".join(json.loads(line)["text"] + "\n" for line in lines))
    (tmp_path / "same.txt").write_text("One text.\n" * 30)
    judged = f"table --own_judge_steps 5 --texts copies={tmp_path}/copies.txt --texts same={tmp_path}/same.txt"
    assert run(study, judged) == 0
    scores = json.loads((study / "scores.json").read_text())
    rows = {name: {key: value["mean"] for key, value in row["metrics"].items()} for name, row in scores["rows"].items()}
    assert list(rows) == ["copies", "same", "human"]
    assert rows["copies"]["train_copy_rate"] == 1 and rows["human"]["train_copy_rate"] == 0
    assert rows["same"]["linear_auc"] == 1 and rows["same"]["distinct"] == pytest.approx(1 / 30)
    assert rows["same"]["own_judge/mauve"] < rows["human"]["own_judge/mauve"]
    assert scores["protocol"]["own_judge"]["name"] == "local_lm" and scores["command"].endswith("same.txt")
    assert len((study / "samples-same.txt").read_text().splitlines()) == 30
    page = (study / "table.md").read_text()
    assert "| copies |" in page and "The first three texts of same" in page
    capsys.readouterr()
    assert run(study, judged) == 0 and capsys.readouterr().out.count("judged before") == 3
    with pytest.raises(SystemExit) as ended:
        run(study, judged.replace("steps 5", "steps 6"))
    assert ended.value.code == 2 and "another protocol: own_judge differs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("corpus", "--corpus NAME"),
        ("table --texts x", "NAME=VALUE"),
        ("table --own_judge_steps 0 --runs a=/nowhere", "no such folder"),
        ("table --own_judge_steps 0 --runs a='/nowhere", "No closing quotation"),
        ("recipe", "needs a language model"),
        ("causal-scratch published causal-lm", "row causal-lm needs a language model"),
        ("table --own_judge_steps 0 --only human other", "--only other: there is nothing of that name"),
        ("frozen-embeddings --encoder_model x", "run that row before"),
        ("recipe --row_flags other=--tx_dim", "no such row"),
        ("table --seeds 0", "too small"),
    ],
)
def test_a_mistake_is_one_line(study, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        run(tmp_path if words == "corpus" else study, words)
    err = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and message in err and "\n" not in err


def test_a_row_that_fails_does_not_stop_the_others(study, capsys):
    wrong = [f"--row_flags={name}=--tx_dmi=3" for name in ("published", "causal-scratch")]
    with pytest.raises(SystemExit) as ended:
        run(study, "published causal-scratch --minutes 0.1", *wrong)
    assert ended.value.code == 2 and "not trained: published, causal-scratch" in capsys.readouterr().err
    log = (study / "log.txt").read_text()
    assert "row published ended with 2" in log and "row causal-scratch: causal-scratch.probe ended with 2" in log


@pytest.mark.slow
def test_rows_are_trained_sampled_and_judged(study, tmp_path, capsys):
    """The recipe, the published one, and a causal language model, each in some seconds, on plain texts."""
    models = tiny_models(study, tmp_path)
    small = "--row_flags=recipe=--tx_dim=64 --row_flags=published=--d_model=64"
    assert run(study, f"recipe published causal-scratch --minutes 0.1 {models} {small}") == 0
    judged = f"table --own_judge_steps 5 {models} --scorer none --mauve_encoder none"
    assert run(study, judged, f"--runs=greedy={study / 'rows' / 'recipe'} --decoding greedy") == 0
    found = json.loads((study / "scores.json").read_text())["rows"]
    assert found["greedy"]["flags"] == "--decoding greedy"
    assert {"recipe", "published", "causal-scratch", "human"} <= set(found)
    assert found["recipe"]["parts"] == [LANGUAGE_MODEL, ENCODER]
    for name in ("recipe", "published"):
        assert "decoder/greedy/similarity" in found[name]["decoder"] and found[name]["similarity"]["part_of_system"]
    assert all(len((study / f"samples-{name}.txt").read_text().splitlines()) == 30 for name in found)
    capsys.readouterr()
    assert run(study, f"recipe --minutes 0.1 {models}") == 0 and "trained before" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("corpus", ["yelp", "commongen"])
def test_rows_of_classes_and_sources(corpus, tmp_path, capsys):
    data, root = tmp_path / "data", tmp_path / "study"
    write_conditional(data / corpus, corpus)
    assert run(root, f"corpus --corpus {corpus} --data_dir {data}") == 0
    models = tiny_models(root, tmp_path)
    rows = ["recipe", "causal-scratch", *(["seq2seq-scratch"] if corpus == "commongen" else [])]
    assert run(root, f"{' '.join(rows)} --minutes 0.1 {models} --row_flags=recipe=--tx_dim=64") == 0
    assert run(root, f"table --own_judge_steps 5 {models} --scorer none --mauve_encoder none") == 0
    found = json.loads((root / "scores.json").read_text())["rows"]
    key = "class_accuracy" if corpus == "yelp" else "pairs/sacrebleu"
    assert all(key in found[name]["metrics"] for name in (*rows, "human"))
    if corpus == "yelp":
        assert found["human"]["metrics"][key]["mean"] > 0.9
    else:
        assert found["human"]["metrics"]["pairs/coverage"]["mean"] > 0.9


def tiny_models(root: Path, folder: Path) -> str:
    """Flags of a tiny language model and a tiny encoder."""
    from evaluation.local_lm import train_local

    some = read_parts(root / "corpus")["train"].texts
    train_local(some, folder / "lm", steps=5, width=32, layers=1, heads=2, vocab_size=300, max_length=128)
    tiny_encoder(folder / "encoder", some)
    return f"--language_model {folder}/lm --encoder_model {folder}/encoder"


def write_conditional(folder: Path, corpus: str) -> None:
    folder.mkdir(parents=True)
    nouns, kinds = ("dog", "cat", "boat", "house", "kite"), {"good": "positive", "bad": "negative"}
    for name, first, n in (("train", 0, 600), ("valid", 600, 120)):
        rows = []
        for i in range(first, first + n):
            kind, noun = list(kinds)[i % 2], nouns[i // 2 % 5]
            if corpus == "yelp":
                rows.append({"text": f"the {noun} number {i} is {kind} .", "label": kinds[kind]})
            else:  # two references of each source
                source, target = f"{noun} part{i // 2}", f"A {noun} with part{i // 2}, number {i % 2}."
                rows.append({"source": source, "target": target})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
