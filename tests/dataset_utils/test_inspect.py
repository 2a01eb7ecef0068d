"""python -m dataset_utils.inspect: what a corpus holds, as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dataset_utils.inspect import main
from dataset_utils.text_stats import script_shares


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 rows with a source, a text, a label and an id."""
    path = tmp_path_factory.mktemp("inspect") / "pairs.jsonl"
    rows = [
        {"id": i, "source": f"ask {i}", "target": f"Answer {i} слово", "label": ["no", "yes"][i % 4 == 0]}
        for i in range(40)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words in lower case."""
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "answer", "слово", *map(str, range(40))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("words")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]").save_pretrained(folder)
    return folder


def inspect(capsys: pytest.CaptureFixture[str], *flags: object) -> dict:
    assert main([*map(str, flags), "--json"]) in (None, 0)
    printed = capsys.readouterr()
    assert not printed.err
    return json.loads(printed.out)


def test_json_holds_files_columns_splits_classes_and_examples(pairs, capsys) -> None:
    found = inspect(capsys, "--train_file", pairs)
    assert found["files"] == {"train": str(pairs)}
    assert found["columns"] == {"source": "source", "text": "target", "label": "label"}
    assert found["unused_columns"] == ["id"]
    assert sum(s["num_texts"] for s in found["splits"].values()) == 40
    assert found["classes"] == {"no": 30, "yes": 10}
    assert sum(s["classes"]["yes"] for s in found["splits"].values()) == 10
    train = found["splits"]["train"]
    assert len(train["examples"]) == len(train["source_examples"]) == 3
    assert train["num_sources"] == train["num_texts"]
    assert all(text.startswith("Answer") for text in train["examples"])
    assert train["words"]["100"] == 3 and train["characters"]["100"] == len("Answer 39 слово")
    assert set(train["scripts"]) == {"Latin", "Cyrillic"} and sum(train["scripts"].values()) == pytest.approx(1)
    assert any("valid and test" in note for note in found["notes"])
    assert any("only" in warning for warning in found["warnings"])
    assert "tokens" not in train and "round_trip" not in train


def test_a_tokenizer_adds_lengths_in_tokens_and_what_it_brings_back(pairs, tokenizer, capsys) -> None:
    train = inspect(capsys, "--train_file", pairs, "--tokenizer", tokenizer, "--max_seq_len", 2)["splits"]["train"]
    assert train["tokens"]["100"] == 3 and train["truncated"] == 1.0 and train["unknown"] == 0
    assert train["round_trip"]["unchanged"] == 0.0, "the tokenizer lowers the case"
    assert train["round_trip"]["before"].startswith("Answer") and train["round_trip"]["after"].startswith("answer")


def test_the_report_shows_all_of_it(pairs, tokenizer, capsys) -> None:
    main(["--train_file", str(pairs), "--tokenizer", str(tokenizer)])
    shown = capsys.readouterr().out
    for part in (
        "columns: source = source, text = target, label = label", "columns that are not used: id", "Cyrillic",
        "the tokenizer brings back unchanged: train 0 %", "before: Answer", "after:  answer",
        "warning: only", " -> Answer", "in texts of at most", "different sources, with 1 texts each",
    ):  # fmt: skip
        assert part in shown, f"{part!r} is missing in\n{shown}"
    main(["--train_file", str(pairs)])
    shown = capsys.readouterr().out
    assert "in texts of at most" not in shown and "twice" in shown


def test_hundreds_of_texts_of_a_source_are_written_out(tmp_path, capsys) -> None:
    flags = ["--source_column", "source"]  # so few are otherwise taken for where a text is from
    for name, count in (("train", 301), ("valid", 4), ("test", 4)):
        rows = [{"source": f"ask {i % 2}", "target": f"Answer {i}"} for i in range(count)]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        flags += [f"--{name}_file", str(path)]
    main(flags)
    shown = capsys.readouterr().out
    assert "2 different sources, with 150.5 texts each" in shown and "with 2 texts each" in shown


def test_nothing_in_a_file_or_its_name_controls_the_terminal(tmp_path, capsys) -> None:
    path = tmp_path / "a\x1b[31m.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"word {i}", "co\x1b[2Jl": 1}) for i in range(30)))
    main(["--train_file", str(path)])
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "there is no file"),
        ("empty.txt", b"", "holds no texts"),
        ("a.jsonl", b'{"text": 3}\n' * 30, "line 1"),
        ("u16.txt", "no mark\n".encode("utf-16-le") * 30, "UTF-16"),
    ],
)
def test_a_refused_file_exits_with_2_and_one_line_on_standard_error(tmp_path, capsys, name, content, message) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        main(["--train_file", str(tmp_path / name), "--json"])
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and not printed.out
    assert printed.err.count("\n") == 1 and message in printed.err and name in printed.err


def test_a_folder_that_holds_no_tokenizer_is_refused(pairs, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--train_file", str(pairs), "--tokenizer", str(tmp_path)])
    assert capsys.readouterr().err.count("\n") == 1


def test_scripts_are_counted_by_letters_and_marks() -> None:
    assert script_shares(["abc 123 !"]) == {"Latin": 1.0}
    assert set(script_shares(["漢字かなカナ한국어ไทยहिन्दी"])) == {
        "Han", "Hiragana", "Katakana", "Hangul", "Thai", "Devanagari"
    }  # fmt: skip
    assert script_shares(["e\u0301"]) == {"Latin": 1.0}, "combining marks belong to the script of their letter"
    assert script_shares(["12 %"]) == {}


def test_a_tokenizer_that_is_not_on_this_machine_is_one_line(pairs, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--train_file", str(pairs), "--tokenizer", "no_such_owner/no_such_tokenizer"])
    shown = capsys.readouterr().err
    assert stopped.value.code == 2 and shown.count("\n") == 1
    assert "it is not on this machine, and the model hub is not reached" in shown and "internet" not in shown
