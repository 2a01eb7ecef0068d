"""The baseline on pairs: training, exact resume, pretrained families, three ways of decoding, and the evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MBart50Tokenizer, MBartConfig, T5Config

from dataset_utils import registry
from dataset_utils.options import DataOptions
from latent_models.tokenizers.training import train_tokenizer
from pipelines import baselines, train_seq2seq
from pipelines.cli.programs import SEQ2SEQ
from pipelines.data.pairs import encode_pairs
from pipelines.data.prompts import Prompts
from pipelines.run_context import setup_run
from pipelines.sample import main as sample
from pipelines.steps.language_model import LanguageModelStep
from utils.cli.parse import parse
from utils.distributed import DistContext
from utils.errors import UserError
from utils.trackers import read_metrics

SMALL = "--d_model 32 --layers 1 --heads 2 --vocab_size 300 --max_seq_len 32 --max_source_len 24"
SOURCES, DIST = Prompts(with_sources=True), DistContext(device=torch.device("cpu"))
ASKED = [f"word{i} to say" for i in range(9)]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> str:
    """Flags of a corpus of pairs with a class, of which held-out sources have two references."""
    folder = tmp_path_factory.mktemp("pairs")
    for split, n, references in (("train", 60, 1), ("valid", 8, 2), ("test", 8, 2)):
        rows = [
            {"source": f"word{i % 9} {split}", "target": f"we say word{i % 9} {j}.", "label": "ab"[i % 2]}
            for i in range(n)
            for j in range(references)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return " ".join(f"--{split}_file {folder}/{split}.jsonl" for split in ("train", "valid", "test"))


@pytest.fixture(scope="session")
def train(programs, pairs) -> Callable[[Path, str], int]:
    """(output folder, flags) -> exit code of a training of the baseline on these pairs."""

    def run(out: Path, flags: str = "", size: str = SMALL) -> int:
        defaults = (
            f"{pairs} --device cpu --mixed_precision no --no_wandb {size} --num_train_steps 6 --log_every 1 "
            "--train_batch_size 8 --lr_warmup_steps 2 --eval_every 3 --num_samples 8 --seq2seq_candidates 2 "
            f"--scorer {programs.scorer}"
        )
        return train_seq2seq.train(parse(SEQ2SEQ, f"{defaults} --output_dir {out} {flags}".split()))

    return run


def again(folder: Path, flags: str) -> int:
    return train_seq2seq.train(parse(SEQ2SEQ, f"--resume_dir {folder} --no_wandb {flags}".split()))


@pytest.fixture(scope="session")
def baseline(train, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("baseline") / "run"
    assert train(folder, "--num_train_steps 60 --learning_rate 1e-2 --eval_every 20") == 0
    return folder


def made(folder: Path, flags: str = ""):
    """The model of a run, its generator, and its settings."""
    settings = parse(SEQ2SEQ, f"--eval --resume_dir {folder} {flags}".split())
    lm = train_seq2seq.load_lm(settings, folder)
    return lm, train_seq2seq.make_generator(settings, lm, SOURCES, 24, DIST), settings


def texts_of(generator, sources: list[str], strategy: str, seed: int = 42) -> list[str]:
    found = generator.candidates(len(sources), 1, seed, (strategy,), lambda a, b: sources[a:b], quiet=True)
    return [row[0] for row in found[strategy]]


def test_a_run_keeps_its_best_checkpoint_as_an_ordinary_model(baseline, train, tmp_path):
    lines = read_metrics(baseline)
    assert [line["step"] for line in lines if "val_loss" in line] == [20, 40, 60]
    assert lines[-1]["val_loss"] < 0.5 * lines[0]["loss"]
    args = json.loads((baseline / "args.json").read_text())
    assert args["program"] == SEQ2SEQ.name and args["seq2seq"] and args["max_prompt_tokens"] == 24
    saved = AutoModelForSeq2SeqLM.from_pretrained(baseline / "model")
    ids = torch.arange(5, 15)[None]
    lm, _, _ = made(baseline)
    torch.testing.assert_close(saved(ids, labels=ids).logits, lm.model(ids, labels=ids).logits)
    assert train(tmp_path / "more", f"--model {baseline / 'model'} --learning_rate 1e-12", "--max_seq_len 32") == 0
    more = [line["val_loss"] for line in read_metrics(tmp_path / "more") if "val_loss" in line]
    best = min(line["val_loss"] for line in lines if "val_loss" in line)
    assert more == pytest.approx([best, best], rel=1e-4)


def test_an_interrupted_run_goes_on_bit_for_bit(train, stop_after, fingerprints, tmp_path):
    assert train(tmp_path / "whole") == 0
    stop_after(LanguageModelStep, 4)
    assert train(tmp_path / "stopped") == 143
    assert again(tmp_path / "stopped", "--resume_training") == 0
    assert fingerprints(tmp_path / "stopped") == fingerprints(tmp_path / "whole")


def test_accumulated_batches_equal_the_large_one(train, tmp_path):
    for name, flags in (("one", ""), ("split", "--train_batch_size 2 --gradient_accumulation_steps 4")):
        assert train(tmp_path / name, f"{flags} --config lm_dropout=0") == 0
    one, split = (read_metrics(tmp_path / name) for name in ("one", "split"))
    for a, b in zip(one, split, strict=True):
        found, expected = ({key: line[key] for key in line.keys() & {"loss", "val_loss"}} for line in (a, b))
        assert found == pytest.approx(expected, rel=1e-4)


def test_the_validation_loss_is_that_of_transformers_per_token(baseline, pairs):
    lm, _, settings = made(baseline)
    names = dict(zip(("train_file", "valid_file"), pairs.split()[1::2], strict=False))
    valid = registry.load(DataOptions(**names)).valid
    run = setup_run(settings, "test", "test")
    data = encode_pairs(lm, valid.texts, valid.sources, 32, 24)
    step = LanguageModelStep(lm, data, run.validation_sampler(len(valid)), run.device)
    tokenizer, nll, tokens, lengths = AutoTokenizer.from_pretrained(baseline / "model"), 0.0, 0, []
    for source, text in zip(valid.sources, valid.texts, strict=True):
        ids, labels = (tokenizer(x, return_tensors="pt")["input_ids"] for x in (source, text))
        lengths.append(ids.numel() + labels.numel())
        loss = lm.model(ids, labels=labels).loss  # mean over the start, the text, and its end
        nll += float(loss.detach()) * labels.numel()
        tokens += labels.numel() - 1
    assert baselines.validation_loss(run, lm, step) == pytest.approx(nll / tokens, rel=1e-4)
    assert data.lengths().tolist() == lengths  # by which training puts pairs of one length into a batch


def test_searched_texts_are_those_of_transformers_and_settings_have_an_effect(baseline):
    tokenizer = AutoTokenizer.from_pretrained(baseline / "model")
    model = AutoModelForSeq2SeqLM.from_pretrained(baseline / "model")
    read = tokenizer(ASKED, padding=True, return_tensors="pt")
    seen = []
    for strategy, flags, given in (
        ("greedy", "", {}),
        ("beam", "", {"num_beams": 4}),
        ("beam", "--num_beams 2 --length_penalty -3", {"num_beams": 2, "length_penalty": -3.0}),
        ("greedy", "--min_new_tokens 20", {"min_new_tokens": 20}),
    ):
        _, generator, _ = made(baseline, f"--decoding {strategy} {flags}")
        ids = model.generate(
            read["input_ids"], attention_mask=read["attention_mask"], max_length=33, do_sample=False, **given
        )
        expected = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
        seen.append(texts_of(generator, ASKED, strategy))
        assert seen[-1] == expected, (strategy, flags)
        assert given.items() <= generator.sampling_metadata().items()
    assert seen[0] != seen[3]


def test_drawn_texts_depend_on_neither_the_batch_size_nor_their_number(baseline):
    _, generator, _ = made(baseline, "--top_k 50 --temperature 3")
    texts = texts_of(generator, ASKED, "nucleus")
    assert len(set(texts)) > 1 and texts_of(generator, ASKED, "nucleus", 43) != texts
    generator.batch_size = 2
    assert texts_of(generator, ASKED, "nucleus") == texts
    assert texts_of(generator, ASKED[:3], "nucleus") == texts[:3]
    _, sharp, _ = made(baseline, "--top_k 1")
    assert texts_of(sharp, ASKED, "nucleus") == texts_of(sharp, ASKED, "greedy")


def test_the_evaluation_is_that_of_pairs_with_every_reference(baseline):
    assert again(baseline, "--eval --decoding nucleus,greedy,beam") == 0
    folder = baseline / "evaluation"
    result = json.loads((folder / "eval-valid.json").read_text())
    metrics = [f"model/seq2seq/{of}{name}" for of in ("", "greedy/", "beam/") for name in ("sacrebleu", "rougeL")]
    assert set(metrics) <= result.keys() and result["model/seq2seq/greedy/rougeL"] > 0.5
    protocol = result["protocol"]
    assert protocol["system"] == "encoder-decoder" and protocol["num_beams"] == 4 and protocol["checkpoint"] == "best"
    records = json.loads((folder / "eval-valid-seed42-beam-pairs.json").read_text())
    assert protocol["num_references"] == sum(len(record["references"]) for record in records) > len(records)
    assert all(len(record["candidates"]) == 2 and len(set(record["candidates"])) == 1 for record in records)


def test_sources_without_references_get_texts(baseline, tmp_path):
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"source": source}) + "\n" for source in ASKED))
    assert again(baseline, f"--eval --valid_file {tmp_path}/asked.jsonl --output_dir {tmp_path}/out") == 0
    records = json.loads((tmp_path / "out/evaluation/eval-valid-seed42-nucleus-pairs.json").read_text())
    assert [record["source"] for record in records] == ASKED[:8]


def test_the_name_of_a_class_stands_before_the_source(train, tmp_path):
    assert train(tmp_path / "run", "--class_conditional") == 0
    assert again(tmp_path / "run", "--eval --decoding greedy") == 0
    result = json.loads((tmp_path / "run/evaluation/eval-valid.json").read_text())
    assert "model/seq2seq/label_accuracy" in result


@pytest.mark.parametrize("family", ["t5", "mbart"])
def test_pretrained_families_are_fine_tuned_and_read_the_language_of_their_sources(
    train, stop_after, fingerprints, tmp_path, family
):
    texts = [f"we say word{i} ." for i in range(9)] + ASKED
    ids = dict(pad_token_id=1, eos_token_id=2, decoder_start_token_id=2)
    if family == "t5":
        tokenizer = train_tokenizer(texts, "word", 200, 64)
        config = T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, vocab_size=len(tokenizer), **ids)
    else:
        words = sorted({f"▁{word}" for text in texts for word in text.split()})
        codes = list(MBart50Tokenizer().lang_code_to_id)
        known = ["<s>", "<pad>", "</s>", "<unk>", *words, *codes, "<mask>"]
        tokenizer = MBart50Tokenizer(vocab=[(token, -1.0) for token in known])
        config = MBartConfig(
            d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=40, bos_token_id=0,
            vocab_size=len(tokenizer), **ids,
        )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    languages = "--source_language de --target_language fr" if family == "mbart" else ""
    size = f"--model {tmp_path / 'lm'} --max_seq_len 32 {languages}"
    assert train(tmp_path / "whole", "--learning_rate 1e-2", size) == 0
    stop_after(LanguageModelStep, 4)
    assert train(tmp_path / "run", "--learning_rate 1e-2", size) == 143
    assert again(tmp_path / "run", "--resume_training") == 0
    assert fingerprints(tmp_path / "run") == fingerprints(tmp_path / "whole")
    assert again(tmp_path / "run", "--eval --num_samples 4 --decoding greedy,beam") == 0
    args = json.loads((tmp_path / "run/args.json").read_text())
    assert args["learning_rate"] == 1e-2
    lm, _, _ = made(tmp_path / "run")
    if family == "mbart":
        assert args["languages"] == ["fr_XX", "de_DE"] and args["max_prompt_tokens"] == 40
        first = [t.convert_ids_to_tokens(t("we")["input_ids"])[0] for t in (lm.source_tokenizer, lm.tokenizer)]
        assert first == ["de_DE", "fr_XX"]
    else:
        assert args["languages"] == [None, None] and lm.source_tokenizer is lm.tokenizer


def test_a_program_that_samples_from_denoisers_names_the_one_that_samples_from_this(baseline, capsys):
    with pytest.raises(SystemExit):
        sample([str(baseline), "-n", "2", "--device", "cpu"])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"which has no denoiser: {SEQ2SEQ.name} --eval --resume_dir {baseline} --num_samples" in line


def test_a_dry_run_trains_nothing(train, baseline, tmp_path, capsys):
    assert train(tmp_path / "run", "--dry_run") == 0
    assert "encoder-decoder" in capsys.readouterr().out and not (tmp_path / "run").exists()
    assert train(tmp_path / "run", f"--dry_run --model {baseline / 'model'}", "--max_seq_len 32") == 0
    assert "decoder" in capsys.readouterr().out and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("{tales}", "no sources in its train split"),
        ("{tales} --dry_run", "no sources in its train split"),
        ("--ignore_sources", "leaves nothing to read"),
        ("--decoding sample", "not a decoding strategy"),
        ("--num_beams 2 --decoding greedy", "contradict each other"),
        ("--class_id 1", "--class_conditional"),
        ("--d_model 33", "not divisible by --heads"),
        ("--tokenizer {empty}", "--tokenizer"),
        ("--model {empty}", "--model .* holds no config.json"),
        ("--model {gpt2}", "not an encoder-decoder .* --model a model of type"),
        ("--model {run}/model --max_seq_len 4000", "--max_seq_len 4000 is more than the 32 tokens"),
        ("--model {run}/model --max_source_len 4000", "--max_source_len 4000 is more than the 32 tokens"),
        ("--model {run}/model --source_language de", "needs a model whose tokenizer has language codes"),
    ],
)
def test_a_mistake_is_one_line(train, programs, baseline, tmp_path, flags, message):
    (tmp_path / "empty").mkdir()
    places = dict(tales=programs.data, empty=tmp_path / "empty", gpt2=programs.scorer, run=baseline)
    with pytest.raises(UserError, match=message) as error:
        train(tmp_path / "run", flags.format(**places))
    assert "\n" not in str(error.value) and not (tmp_path / "run/checkpoints").exists()


def test_a_pretrained_model_takes_smaller_steps():
    def rate(flags: str) -> float:
        return parse(SEQ2SEQ, f"--train_file x.txt {flags}".split()).config.optimizer.learning_rate

    assert rate("") == 3e-4 and rate("--model m") == 5e-5 and rate("--model m --learning_rate 0.5") == 0.5
