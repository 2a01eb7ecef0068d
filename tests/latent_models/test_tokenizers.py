"""Tokenizers of embedding diffusion: training, loading, reloading, fingerprints."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import models, normalizers
from transformers import AutoTokenizer, BertTokenizerFast

from latent_models.tokenizers.files import load_tokenizer
from latent_models.tokenizers.from_flags import check_coverage, make_tokenizer, unknown_rate
from latent_models.tokenizers.options import TokenizerOptions
from latent_models.tokenizers.special_ids import end_id, start_id
from latent_models.tokenizers.training import KINDS, TokenizerTraining, train_tokenizer
from utils.errors import UserError
from utils.tokenizer_fingerprint import check_same_tokenizer, fingerprint, tokenizer_rules

TEXTS = ["The RED apple is fresh.", "Café in 1984: don't!", "the red pear is fresh."]
PLAIN = TokenizerTraining(400)
PUBLISHED = TokenizerTraining(400, 1, lowercase=True, strip_accents=True, individual_digits=True)


def round_trip(tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)


def test_word_level_tokenizers_have_the_published_layout():
    tokenizer = train_tokenizer(TEXTS, "word-level", PUBLISHED, 64)
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(5)] == ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    ids = tokenizer("The RED apple").input_ids
    assert (ids[0], ids[-1]) == (start_id(tokenizer), end_id(tokenizer)) == (1, 2)
    assert tokenizer.pad_token_id == 3 and tokenizer.unk_token_id == 0
    assert tokenizer.convert_ids_to_tokens(tokenizer("Café 1984").input_ids) == (
        ["[CLS]", "cafe", "1", "9", "8", "4", "[SEP]"]
    )
    assert round_trip(tokenizer, TEXTS[0]) == "the red apple is fresh."
    assert round_trip(tokenizer, TEXTS[1]) == "cafe in 1984: don't!"
    pair = tokenizer("the red", "the pear").input_ids
    assert pair.count(2) == 2 and pair.count(1) == 1


def test_each_option_has_its_effect():
    plain = train_tokenizer(TEXTS, "word-level", PLAIN, 64)
    assert round_trip(plain, TEXTS[1]) == TEXTS[1] and "1984" in plain.get_vocab()
    lower = train_tokenizer(TEXTS, "word-level", replace(PLAIN, lowercase=True), 64)
    assert "café" in lower.get_vocab() and "RED" not in lower.get_vocab()
    bare = train_tokenizer(TEXTS, "word-level", replace(PLAIN, strip_accents=True), 64)
    assert "Cafe" in bare.get_vocab()
    often = train_tokenizer(TEXTS, "word-level", replace(PUBLISHED, min_frequency=2), 64)
    assert "red" in often.get_vocab() and "apple" not in often.get_vocab()
    assert len(train_tokenizer(TEXTS, "word-level", replace(PUBLISHED, vocab_size=8), 64)) == 8


def test_byte_level_tokenizers_round_trip_any_text():
    tokenizer = train_tokenizer(TEXTS, "byte-level", PLAIN, 64)
    for text in [*TEXTS, "  two  blanks, 東京 🙂 e\u0301"]:
        assert round_trip(tokenizer, text) == text
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(5)] == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.mark.parametrize("kind, size", [("byte-level", 100), ("word-level", 5)])
def test_a_vocabulary_smaller_than_its_special_tokens_is_refused(kind, size):
    with pytest.raises(UserError, match=f"--vocab_size {size} is too small .* give {KINDS[kind].smallest} or more"):
        train_tokenizer(TEXTS, kind, size, 64)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("options", [PLAIN, PUBLISHED])
def test_a_saved_tokenizer_is_reloaded_unchanged(kind, options, tmp_path):
    tokenizer = train_tokenizer(TEXTS, kind, options, 64)
    before = fingerprint(tokenizer)
    tokenizer(TEXTS, truncation=True, max_length=3, padding=True)  # changes settings of the tokenizer
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path), 64)
    assert fingerprint(again) == before == fingerprint(tokenizer)
    for text in [*TEXTS, "an unknown Ünword 7"]:
        assert again(text).input_ids == tokenizer(text).input_ids
        assert round_trip(again, text) == round_trip(tokenizer, text)


def test_other_merges_or_another_normalizer_change_the_fingerprint():
    one = train_tokenizer(TEXTS, "byte-level", PLAIN, 64)
    other = train_tokenizer(TEXTS, "byte-level", PLAIN, 64)
    assert fingerprint(one) == fingerprint(other)
    merges = [tuple(pair) for pair in json.loads(one.backend_tokenizer.to_str())["model"]["merges"]]
    other.backend_tokenizer.model = models.BPE(one.get_vocab(), merges[::-1])
    assert other.get_vocab() == one.get_vocab()
    assert fingerprint(one) != fingerprint(other) and tokenizer_rules(one) != tokenizer_rules(other)
    lower = train_tokenizer(TEXTS, "byte-level", PLAIN, 64)
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert fingerprint(lower) != fingerprint(one) and tokenizer_rules(lower) != tokenizer_rules(one)
    check_same_tokenizer(one, None, "runs/a")
    check_same_tokenizer(one, fingerprint(one), "runs/a")
    with pytest.raises(UserError, match="runs/a was trained with another tokenizer"):
        check_same_tokenizer(lower, fingerprint(one), "runs/a")


# ------------------------------------------------------------------------------------------------------------ found


def test_a_word_list_has_fixed_special_ids_and_joins_pieces(tmp_path):
    (tmp_path / "vocab.txt").write_text("[START] 9\nnew@@ 5\ner 4\nhouse\n__ 3\n\nun__\n")
    tokenizer = load_tokenizer(str(tmp_path / "vocab.txt"), 32)
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(5)] == ["[START]", "[END]", "[UNK]", "[PAD]", "new@@"]
    ids = tokenizer("new@@ er house zebra un__ er").input_ids
    assert ids == [0, 4, 5, 6, 2, 8, 5, 1]
    assert tokenizer.sep_token_id == tokenizer.eos_token_id == 1 and tokenizer.pad_token_id == 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == "newer house uner"
    tokenizer.save_pretrained(tmp_path / "saved")
    assert fingerprint(load_tokenizer(str(tmp_path / "saved"), 32)) == fingerprint(tokenizer)


def test_a_mark_and_separators_of_unicode_are_no_part_of_a_word_list(tmp_path):
    lines = ["[START]", "one", "t\u2028wo", "th\x85ree"]
    (tmp_path / "vocab.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    tokenizer = load_tokenizer(str(tmp_path / "vocab.txt"), 32)
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(4, len(tokenizer))] == lines[1:]


def test_a_bert_tokenizer_is_loaded_from_disk(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "app", "##le"]
    BertTokenizerFast(vocab={w: i for i, w in enumerate(words)}).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path), 16)
    assert tokenizer("The red apple").input_ids == [2, 5, 6, 7, 8, 3]
    assert (start_id(tokenizer), end_id(tokenizer)) == (2, 3)
    assert round_trip(tokenizer, "The red apple") == "the red apple"
    assert fingerprint(tokenizer) == fingerprint(AutoTokenizer.from_pretrained(tmp_path))


def test_a_file_of_the_tokenizers_library_is_loaded(tmp_path):
    trained = train_tokenizer(TEXTS, "word-level", PUBLISHED, 64)
    trained.backend_tokenizer.save(str(tmp_path / "word-level-vocab.json"))
    loaded = load_tokenizer(str(tmp_path / "word-level-vocab.json"), 64)
    assert fingerprint(loaded) == fingerprint(trained)


def test_anything_but_a_tokenizer_raises_an_error_of_one_line(tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "twice.txt").write_text("a\nb\na\n")
    (tmp_path / "no.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    cases = {
        "empty.txt": "holds no tokens",
        "twice.txt": "line 3: the token 'a' comes twice",
        "no.json": "is not a file of the tokenizers library",
        "folder": "holds (no tokenizer that can be read|only special tokens)",
        "absent/": "no such file or folder",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message) as error:
            load_tokenizer(f"{tmp_path}/{name}", 16)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="neither a local file or folder nor in the local cache"):
        load_tokenizer("nobody/nothing", 16)


# --------------------------------------------------------------------------------------------------------- coverage


def test_too_many_unknown_words_are_refused_with_their_share():
    options = TokenizerOptions(vocab_size=8)
    tokenizer = make_tokenizer(options, TEXTS, 64)
    share = unknown_rate(tokenizer, TEXTS)
    assert 0.1 < share < 1
    with pytest.raises(UserError, match=f"lacks {100 * share:.1f} % of the words"):
        check_coverage(tokenizer, TEXTS, options)
    assert check_coverage(make_tokenizer(TokenizerOptions(), TEXTS, 64), TEXTS, TokenizerOptions()) == 0
    assert unknown_rate(make_tokenizer(TokenizerOptions(), TEXTS, 64), ["the red zebra is"]) == 0.25


# ------------------------------------------------------------------------------------------------------- one command


def test_one_command_trains_a_tokenizer(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    (tmp_path / "b.jsonl").write_text('{"src": "a source", "trg": "a target"}\n')
    command = [sys.executable, "-m", "latent_models.tokenizers", "train-word-level"]
    done = subprocess.run(
        [*command, str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl"), "--output_dir", str(tmp_path / "made")],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "from 5 texts, 0.0 % of their words unknown" in done.stdout
    tokenizer = load_tokenizer(str(tmp_path / "made"), 64)
    assert {"source", "target", "Café", "RED", "red"} <= set(tokenizer.get_vocab())


def test_the_command_overwrites_nothing(tmp_path, capsys):
    from latent_models.tokenizers.__main__ import main

    (tmp_path / "a.txt").write_text("one text\n")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine").touch()
    with pytest.raises(SystemExit) as end:
        main(["train-byte-level", str(tmp_path / "a.txt"), "--output_dir", str(tmp_path / "made")])
    assert end.value.code == 2 and "nothing is overwritten" in capsys.readouterr().err
