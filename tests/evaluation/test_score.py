"""The program that scores texts of any system: its numbers are those of the evaluations, its errors are one line."""

from __future__ import annotations

import json
import random

import pytest

from evaluation.diversity import ngram_diversity
from evaluation.memorization import memorization
from evaluation.overlap import bleu, one_of_each, rouge
from evaluation.protocols import evaluate_pairs, evaluate_texts
from evaluation.score.__main__ import main
from evaluation.two_sample import linear_auc


@pytest.fixture
def files(tmp_path, stories):
    """Files of texts in a folder: give {name: texts}, get their paths."""

    def write(**sets):
        paths = []
        for name, texts in sets.items():
            path = tmp_path / f"{name}.txt"
            path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
            paths.append(path)
        return paths

    return write


@pytest.fixture
def run(tmp_path, local_lm_folder, encoder_folder, capsys):
    """Run the program with the tiny judges; returns the JSON file. error=True: returns the one line of the error."""

    def score(*arguments, judges=True, error=False):
        named = ["--scorer", local_lm_folder, "--mauve_encoder", encoder_folder] if judges else []
        given = [str(a) for a in [*arguments, *named, "--json", tmp_path / "scores.json"]]
        if not error:
            assert main(given) == 0
            return json.loads((tmp_path / "scores.json").read_text())
        with pytest.raises(SystemExit) as stopped:
            main(given)
        assert stopped.value.code == 2 and not (tmp_path / "scores.json").exists()
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note:")]
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0]

    return score


def test_sets_of_texts_have_the_numbers_of_an_evaluation(files, run, stories, scorer, encoder):
    samples, references, train = files(samples=stories[:20], references=stories[20:40], train=stories[40:])
    found = run("--samples", samples, "--references", references, "--train", train)
    real = random.Random("42, references").sample(stories[20:40], 20)  # a corpus may be sorted
    training = random.Random("42, references").sample(stories[40:], 40)
    by_hand = evaluate_texts(stories[:20], {"val": real, "train": training[:20]}, stories[40:], scorer, encoder=encoder)
    assert {key: found[key] for key in by_hand if key != "protocol"} == {
        key: pytest.approx(value) for key, value in by_hand.items() if key != "protocol"
    }
    assert found["diversity"] == ngram_diversity(stories[:20])["diversity"]
    assert found["memorization"] == memorization(stories[:20], stories[40:])["memorization"]
    assert found["linear_auc"] == linear_auc(stories[:20], real)["linear_auc"]
    assert {"local_lm_val_mauve", "tiny-bert_val_mauve", "reference/val_perplexity"} <= set(found)
    assert {"reference/local_lm_train_val_mauve", "reference/tiny-bert_train_train_mauve"} <= set(found)


def test_the_protocol_says_what_was_scored_and_by_what_without_paths(files, run, stories, scorer, tmp_path):
    samples, references = files(samples=stories[:20], references=stories[20:60])
    protocol = run("--samples", samples, "--references", references)["protocol"]
    assert protocol["scorer"] == "local_lm" and protocol["fingerprint"] == scorer.fingerprint
    assert protocol["mauve"]["scaling"] == 5 and protocol["mauve_encoder"]["scaling"] == 8
    assert protocol["n"] == protocol["references"] == 20 and protocol["seed"] == 42
    assert protocol["files"]["samples"] == [
        {"name": "samples.txt", "texts": 20, "sha256": protocol["files"]["samples"][0]["sha256"]}
    ]
    assert str(tmp_path) not in json.dumps(protocol)


def test_several_files_of_samples_give_mean_and_deviation(files, run, stories, capsys):
    one, two, references = files(one=stories[:20], two=stories[10:30], references=stories[40:])
    found = run("--samples", one, two, "--references", references)
    assert found["diversity"]["values"] == [ngram_diversity(t)["diversity"] for t in (stories[:20], stories[10:30])]
    assert found["diversity"]["mean"] == pytest.approx(sum(found["diversity"]["values"]) / 2)
    assert len(found["protocol"]["runs"]) == 2 and found["protocol"]["runs"][1]["seed"] == 43
    assert "+-" in capsys.readouterr().out


def test_without_judges_and_training_texts_the_rest_is_computed(files, run, stories, capsys):
    samples, references = files(samples=stories[:20], references=stories[20:40])
    found = run("--samples", samples, "--references", references, judges=False)
    assert "linear_auc" in found and "diversity" in found
    assert not {"perplexity", "memorization"} & set(found) and not any(key.endswith("_mauve") for key in found)
    assert "python -m latent_models.pretrained smollm2-135m makes one" in capsys.readouterr().err


def test_pairs_are_compared_line_by_line(files, run, stories, scorer):
    samples, references, sources = files(s=stories[:12], r=stories[1:13], sources=stories[2:14])
    found = run("--samples", samples, "--references", references, "--sources", sources)
    assert found["sacrebleu"] == bleu(stories[:12], stories[1:13])
    assert found["rougeL"] == pytest.approx(rouge(stories[:12], stories[1:13])["rougeL"])
    by_hand = evaluate_pairs([[text] for text in stories[:12]], stories[1:13], None, scorer)
    assert found["perplexity"] == by_hand["perplexity"] and found["chance_rouge1"] == by_hand["chance_rouge1"]
    assert "local_lm_val_mauve" in found and "reference/val_diversity" in found
    assert not any(key.startswith(("mbr_", "oracle_")) for key in found)  # of one candidate


def test_lines_of_one_source_share_their_references(files, run, stories):
    """As in the evaluation of a run; and they lie in one fold of the linear model."""
    samples, references, sources = files(s=stories[:12], r=stories[1:13], sources=[f"{i // 2}" for i in range(12)])
    found = run("--samples", samples, "--references", references, "--sources", sources)
    shared = [[stories[1 + i // 2 * 2], stories[2 + i // 2 * 2]] for i in range(12)]
    assert found["sacrebleu"] == pytest.approx(bleu(stories[:12], shared))
    assert found["sacrebleu"] > bleu(stories[:12], stories[1:13])
    by_hand = linear_auc(stories[:12], one_of_each(shared, 42), sources=[f"{i // 2}" for i in range(12)])
    assert found["linear_auc"] == by_hand["linear_auc"]


def test_json_lines_with_candidates_and_several_references(run, stories, tmp_path):
    rows = [
        {
            "source": stories[i],
            "references": [stories[i + 1], stories[i + 2]],
            "candidates": [stories[i + 2], "Ann saw"],
        }
        for i in range(12)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run("--samples", path, "--references", path, "--sources", path)
    assert found["rouge1"] == 1 and found["oracle_rouge1"] == 1 and found["mbr_rouge1"] <= 1
    assert found["protocol"]["candidates"] == 2


def test_files_of_an_evaluation_can_be_scored_again(run, files, stories, tmp_path):
    (tmp_path / "samples.json").write_text(json.dumps(stories[:15]))  # as eval-valid-seed42-beam-samples.json
    found = run("--samples", tmp_path / "samples.json", "--references", *files(references=stories[30:50]))
    assert found["diversity"] == ngram_diversity(stories[:15])["diversity"]


def test_empty_samples_are_counted_and_named(files, run, stories, capsys):
    samples, references = files(samples=[*stories[:14], "", " "], references=stories[20:40])
    assert run("--samples", samples, "--references", references)["empty"] == 2
    assert "2 of 16 samples are empty, the first on line 15" in capsys.readouterr().err


# -- what is refused -------------------------------------------------------------------------------------------------


def test_files_that_do_not_belong_together_are_refused(files, run, stories):
    a, b, c, sources = files(a=stories[:12], b=stories[12:24], c=stories[24:30], sources=stories[30:42])
    assert "2 files for 1 files of samples" in run("--samples", a, "--references", b, c, error=True)
    assert "2 files for 3 files of samples" in run("--samples", a, b, c, "--references", b, c, error=True)
    line = run("--samples", a, "--references", c, "--sources", sources, error=True)
    assert "c.txt holds 6 texts" in line and "sources.txt 12" in line
    line = run("--samples", c, "--references", a, "--sources", sources, error=True)
    assert "c.txt holds 6 texts" in line
    line = run("--samples", a, "--references", b, "--sources", sources, "--bleu_tokenizer", "klingon", error=True)
    assert "invalid choice: 'klingon'" in line
    assert "add --sources" in run("--samples", a, "--references", b, "--bleu_tokenizer", "intl", error=True)


def test_empty_lines_and_single_texts_are_refused(files, run, stories, tmp_path):
    good, holes, one, blank, none = files(
        good=stories[:12], holes=[*stories[:3], "", *stories[4:9], " "], one=stories[:1], blank=["", ""], none=[]
    )
    for flag in ("--references", "--train", "--sources"):
        rest = ["--references", good] if flag != "--references" else []
        line = run("--samples", good, *rest, flag, holes, error=True)
        assert f"{flag} {holes}, line 4 is empty (and 1 more)" in line
    assert "holds one text" in run("--samples", one, "--references", good, error=True)
    assert "holds one text" in run("--samples", good, "--references", one, error=True)
    assert "every text is empty" in run("--samples", blank, "--references", good, error=True)
    assert "holds no text" in run("--samples", none, "--references", good, error=True)
    assert "there is no such file" in run("--samples", tmp_path / "no.txt", "--references", good, error=True)
    assert "is a folder" in run("--samples", tmp_path, "--references", good, error=True)


def test_damaged_files_are_refused_with_their_line(files, run, stories, tmp_path):
    (good,) = files(good=stories[:12])
    binary, broken, keys, numbers = (tmp_path / name for name in ("b.txt", "c.jsonl", "d.jsonl", "e.jsonl"))
    binary.write_bytes(b"fine\n\xff\xfe\x00 \n")
    broken.write_text('{"text": "fine"}\n{"text": "fi\n')
    keys.write_text('{"label": 1}\n')
    numbers.write_text('{"text": 3}\n')
    assert "line 2" in run("--samples", binary, "--references", good, error=True)
    assert "line 2" in run("--samples", broken, "--references", good, error=True)
    assert "line 1: none of" in run("--samples", keys, "--references", good, error=True)
    assert "text is not a text" in run("--samples", numbers, "--references", good, error=True)
    (tmp_path / "f.jsonl.gz").write_bytes(b"not gzip at all")
    assert "f.jsonl.gz" in run("--samples", tmp_path / "f.jsonl.gz", "--references", good, error=True)


def test_judges_that_are_no_models_are_refused(files, run, stories, tmp_path, local_lm_folder, encoder_folder):
    a, b = files(a=stories[:12], b=stories[12:24])
    sides = ["--samples", a, "--references", b]
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in local_lm_folder.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    for folder in (tmp_path / "empty", damaged, tmp_path / "absent", a):
        line = run(*sides, "--scorer", folder, judges=False, error=True)
        assert "scorer" in line
        line = run(*sides, "--scorer", "none", "--mauve_encoder", folder, judges=False, error=True)
        assert "--mauve_encoder" in line
    assert "scorer" in run(*sides, "--scorer", encoder_folder, judges=False, error=True)  # it is no causal model


def test_hostile_texts_do_nothing_to_the_terminal(files, run, stories, capsys):
    samples, references = files(samples=["\x1b[2J\x1b]0;title\x07 <script>", *stories[:12]], references=stories[20:40])
    run("--samples", samples, "--references", references)
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
