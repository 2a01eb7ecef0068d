"""The baseline program: training, exact resume, adapters, classes and pairs, and the evaluation of diffusion runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dataset_utils import registry
from dataset_utils.options import DataOptions
from evaluation import scorers
from evaluation.score.__main__ import main as score
from latent_models.causal.model import CausalLM
from pipelines import baselines, train_causal_lm
from pipelines.cli.programs import CAUSAL_LM
from pipelines.data.prompts import Prompts
from pipelines.run_context import setup_run
from pipelines.sample import main as sample
from pipelines.steps.language_model import LanguageModelStep
from utils import checkpoints
from utils.cli.parse import parse
from utils.errors import UserError
from utils.trackers import read_metrics

SMALL = "--d_model 32 --layers 1 --heads 2 --vocab_size 300 --max_seq_len 64"


@pytest.fixture(scope="session")
def train(programs) -> Callable[[Path, str], int]:
    """(output folder, flags) -> exit code of a training of the baseline on the stories of the other tests."""

    def run(out: Path, flags: str = "") -> int:
        defaults = (
            f"{programs.data} --device cpu --mixed_precision no --no_wandb {SMALL} --num_train_steps 6 --log_every 1 "
            "--train_batch_size 8 "
            f"--lr_warmup_steps 2 --eval_every 3 --config val_loss_examples=16 --num_samples 12 "
            f"--scorer {programs.scorer}"
        )
        return train_causal_lm.train(parse(CAUSAL_LM, f"{defaults} --output_dir {out} {flags}".split()))

    return run


def again(folder: Path, flags: str) -> int:
    return train_causal_lm.train(parse(CAUSAL_LM, f"--resume_dir {folder} --no_wandb {flags}".split()))


@pytest.fixture(scope="session")
def baseline(train, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("baseline") / "run"
    assert train(folder, "--num_train_steps 40 --learning_rate 1e-2 --eval_every 20") == 0
    return folder


def test_a_run_keeps_its_best_checkpoint_as_an_ordinary_model(baseline):
    lines = read_metrics(baseline)
    assert [line["step"] for line in lines if "val_loss" in line] == [20, 40]
    assert lines[-1]["val_loss"] < lines[0]["loss"]
    args = json.loads((baseline / "args.json").read_text())
    assert args["program"] == CAUSAL_LM.name and args["trainable_params"] > 0
    settings = parse(CAUSAL_LM, ["--eval", "--resume_dir", str(baseline)])
    lm, saved = train_causal_lm.load_lm(settings, baseline), CausalLM.from_pretrained(str(baseline / "model"))
    ids = torch.arange(5, 15)[None]
    torch.testing.assert_close(saved.model(ids).logits, lm.model(ids).logits)
    assert scorers.load(baseline / "model").nll(["One day."]).nll[0] > 0  # serves as a judge, too


def test_an_interrupted_run_goes_on_bit_for_bit(train, stop_after, fingerprints, tmp_path):
    assert train(tmp_path / "whole") == 0
    stop_after(LanguageModelStep, 4)
    assert train(tmp_path / "stopped") == 143
    assert again(tmp_path / "stopped", "--resume_training") == 0
    assert fingerprints(tmp_path / "stopped") == fingerprints(tmp_path / "whole")


def test_a_batch_holds_texts_of_about_one_length(train, monkeypatch, tmp_path):
    wasted, original = {"plain": 0, "run": 0}, LanguageModelStep.__call__

    def call(self, step: int, micro: int):
        lengths, plain = self.data.lengths(), self.batch_sampler.sampler  # which the run exchanges rows of
        for name, sampler in (("plain", plain), ("run", self.batch_sampler)):
            of_batch = lengths[sampler.rows(step, micro, len(self.data)).numpy()]
            wasted[name] += int((of_batch.max() - of_batch).sum())  # positions of padding
        return original(self, step, micro)

    monkeypatch.setattr(LanguageModelStep, "__call__", call)
    assert train(tmp_path / "run", "--max_seq_len 400") == 0
    assert 0 < wasted["run"] < 0.5 * wasted["plain"]


def test_accumulated_batches_equal_the_large_one(train, tmp_path):
    """Also of texts of different lengths: every token counts the same, however the batch is split."""
    for name, flags in (("one", ""), ("split", "--train_batch_size 2 --gradient_accumulation_steps 4")):
        assert train(tmp_path / name, f"{flags} --max_seq_len 400 --config lm_dropout=0") == 0
    one, split = (read_metrics(tmp_path / name) for name in ("one", "split"))
    for a, b in zip(one, split, strict=True):
        found, expected = ({key: line[key] for key in line.keys() & {"loss", "val_loss"}} for line in (a, b))
        assert found == pytest.approx(expected, rel=1e-4)


def test_the_validation_loss_is_nats_per_token(baseline, programs):
    settings = parse(CAUSAL_LM, ["--eval", "--resume_dir", str(baseline)])
    lm = train_causal_lm.load_lm(settings, baseline)
    corpus = registry.load(DataOptions(**{f"{s}_file": f"{programs.corpus}/{s}.jsonl" for s in ("train", "valid")}))
    run = setup_run(settings, "test", "test")
    data = train_causal_lm.encode_split(lm, corpus.valid, Prompts(), settings.config, 0)
    sampler = run.validation_sampler(len(corpus.valid))
    found = baselines.validation_loss(run, lm, LanguageModelStep(lm, data, sampler, run.device))
    rows = torch.cat([sampler.rows(0, micro, len(data)) for micro in sampler.micro_batches])
    nll, tokens = 0.0, 0
    for row in rows.tolist():
        ids = torch.tensor([lm.boundaries.start_id, *lm.tokenizer(corpus.valid.texts[row])["input_ids"][1:-1][:62]])
        ids = torch.cat([ids, torch.tensor([lm.boundaries.end_id])])
        logp = lm.model(ids[None]).logits[0, :-1].log_softmax(-1)
        nll -= float(logp[torch.arange(len(ids) - 1), ids[1:]].sum().detach())
        tokens += len(ids) - 1
    assert found == pytest.approx(nll / tokens, rel=1e-4)


def test_the_evaluation_has_files_and_numbers_of_the_others_and_of_evaluation_score(baseline, programs, tmp_path):
    flags = f"--num_samples 12 --scorer {programs.scorer} --output_dir {tmp_path}"
    given = {"top_k": 30, "repetition_penalty": 1.1, "no_repeat_ngram_size": 5, "min_new_tokens": 2}
    flags += "".join(f" --{name} {value}" for name, value in given.items())
    assert again(baseline, f"--eval {flags}") == 0
    folder = tmp_path / "evaluation"
    result = json.loads((folder / "eval-valid.json").read_text())
    samples = folder / "eval-valid-seed42-nucleus-samples.json"
    assert len(json.loads(samples.read_text())) == 12
    assert {"system", "top_p", "temperature", "seed", "corpus"} <= result["protocol"].keys()
    assert given.items() <= result["protocol"].items()
    assert {"reference/val_perplexity", "model/nucleus/train_copy_rate"} <= result.keys()
    flags = f"--samples {samples} --references {programs.corpus}/valid.jsonl --train {programs.corpus}/train.jsonl"
    assert score(f"{flags} --scorer {programs.scorer} --mauve_encoder none --json {tmp_path}/scores.json".split()) == 0
    scored = json.loads((tmp_path / "scores.json").read_text())
    same = ("empty", "perplexity", "corpus_perplexity", "diversity", "memorization", "train_copy_rate")
    assert {key: result[f"model/nucleus/{key}"] for key in same} == {key: scored[key] for key in same}
    assert scored["protocol"]["fingerprint"] == result["protocol"]["fingerprint"]
    assert {"checkpoint": "best", "step": checkpoints.load_best(baseline).step}.items() <= result["protocol"].items()


def test_samples_depend_on_neither_the_batch_size_nor_their_number(baseline):
    from benchmarks.systems import _load_causal

    settings = parse(CAUSAL_LM, ["--eval", "--resume_dir", str(baseline), "--eval_batch_size", "5"])
    texts = _load_causal(baseline, "cpu")(12, 42)
    assert settings.config.evaluation.eval_batch_size == 5
    lm = train_causal_lm.load_lm(settings, baseline)
    run = setup_run(settings, "test", "test")
    generator = train_causal_lm.make_generator(settings, lm, Prompts(), 0, run.dist)
    assert generator.sample(12, 42, quiet=True).texts["nucleus"] == texts
    assert generator.sample(3, 42, quiet=True).texts["nucleus"] == texts[:3]
    assert generator.sample(12, 43, quiet=True).texts["nucleus"] != texts


def test_flags_of_decoding_are_those_of_transformers(baseline):
    def made(flags: str) -> tuple[CausalLM, str, dict]:
        settings = parse(CAUSAL_LM, ["--eval", "--resume_dir", str(baseline), *flags.split()])
        lm = train_causal_lm.load_lm(settings, baseline)
        generator = train_causal_lm.make_generator(settings, lm, Prompts(), 0, setup_run(settings, "test", "test").dist)
        strategy = settings.config.evaluation.decoding
        return lm, generator.sample(1, 42, (strategy,), quiet=True).texts[strategy][0], generator.sampling_metadata()

    lm, plain, metadata = made("--decoding greedy")
    assert metadata.keys() == {"system", "model", "top_p", "temperature", "max_seq_len"}
    start, end = torch.tensor([[lm.boundaries.start_id]]), lm.boundaries.end_id
    rules = dict(max_new_tokens=63, do_sample=False, eos_token_id=end, pad_token_id=end)
    rules["suppress_tokens"] = list(lm.boundaries.forbidden)
    found = []
    both = {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3}
    for given in ({}, {"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}, both, both | {"min_new_tokens": 50}):
        flags = " ".join(f"--{name} {value}" for name, value in given.items())
        _, text, metadata = made(f"--decoding greedy {flags}")
        expected = lm.model.generate(start, attention_mask=torch.ones_like(start), **rules, **given)[:, 1:]
        assert [text] == lm.decode(expected.tolist()) and given.items() <= metadata.items(), given
        found.append(text)
    assert found[0] == plain and len(set(found)) == len(found), "each flag has an effect"
    assert made("--decoding nucleus --top_k 1")[1] == plain != made("--decoding nucleus")[1]


def test_flags_of_decoding_without_effect_are_refused(baseline):
    for flags, message in (
        ("--decoding greedy --top_k 5", "--top_k 5 and --decoding greedy contradict each other"),
        ("--min_new_tokens 65", "--min_new_tokens 65 is more than --max_seq_len 64"),
        ("--num_beams 4", "--num_beams searches with beams, and this program samples each token"),
        ("--length_penalty 2", "--length_penalty compares beams"),
    ):
        with pytest.raises(UserError, match=message):
            again(baseline, f"--eval {flags}")


def test_adapters_alone_train_and_are_saved(train, baseline, stop_after, fingerprints, tmp_path):
    flags = f"--model {baseline / 'model'} --lora_rank 2 --learning_rate 1e-2"
    assert train(tmp_path / "whole", flags) == 0
    with safe_open(next(p for p in (tmp_path / "whole/best").rglob("model.safetensors")), "pt") as held:
        assert held.keys() and all("lora_" in name for name in held.keys())  # noqa: SIM118
    stop_after(LanguageModelStep, 4)
    assert train(tmp_path / "stopped", flags) == 143
    assert again(tmp_path / "stopped", "--resume_training") == 0
    assert fingerprints(tmp_path / "stopped") == fingerprints(tmp_path / "whole")
    ids = torch.arange(5, 15)[None]
    merged, base = (
        CausalLM.from_pretrained(str(f / "model")).model(ids).logits for f in (tmp_path / "whole", baseline)
    )
    assert not torch.equal(merged, base)


def test_adapters_go_on_with_the_model_that_they_were_trained_beside(train, baseline, tmp_path):
    shutil.copytree(baseline / "model", tmp_path / "lm")
    assert train(tmp_path / "run", f"--model {tmp_path / 'lm'} --lora_rank 2 --max_seconds 0") == 0
    other = CausalLM.from_pretrained(str(tmp_path / "lm"))
    with torch.no_grad():
        other.model.get_input_embeddings().weight.add_(1e-3)
    other.model.save_pretrained(tmp_path / "lm")
    for flags in ("--eval --num_samples 4", "--resume_training"):
        with pytest.raises(UserError, match="lm is not the model that .*run was trained with"):
            again(tmp_path / "run", flags)


def test_classes_precede_their_texts(train, programs, tmp_path):
    assert train(tmp_path / "run", "--class_conditional") == 0
    assert again(tmp_path / "run", f"--eval --num_samples 8 --class_id all --scorer {programs.scorer}") == 0
    result = json.loads((tmp_path / "run/evaluation/eval-valid.json").read_text())
    assert {f"model/nucleus/cond{c}_label_accuracy" for c in range(4)} <= result.keys()
    texts = []
    for size in (3, 8):
        flags = f"--eval --num_samples 8 --class_id prior --scorer {programs.scorer} --eval_batch_size {size}"
        assert again(tmp_path / "run", f"{flags} --log_report") == 0
        texts.append((tmp_path / "run/evaluation/eval-valid-seed42-nucleus-samples.json").read_text())
    assert texts[0] == texts[1], "whatever the batch, a text has the same class"
    assert (tmp_path / "run/report.html").is_file()


def test_a_sample_ends_where_the_positions_of_the_model_do(train, baseline, tmp_path, programs):
    """A prompt with a short text fits, and a text of the longest kind behind it would not."""
    limit = CausalLM.from_pretrained(str(baseline / "model")).max_length
    for split, n in (("train", 16), ("valid", 4), ("test", 4)):
        rows = [{"source": "a " * (limit - 12), "target": f"{i}."} for i in range(n)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = " ".join(f"--{split}_file {tmp_path}/{split}.jsonl" for split in ("train", "valid", "test"))
    flags = (
        f"{files} --model {baseline / 'model'} --max_source_len {limit} --max_seq_len {limit - 1} --num_train_steps 2"
    )
    assert train(tmp_path / "run", f"{flags} --eval_every 2") == 0
    flags = f"--eval --num_samples 2 --seq2seq_candidates 1 --scorer {programs.scorer}"
    assert again(tmp_path / "run", flags) == 0


def test_sources_precede_their_targets(train, tmp_path, programs):
    for split, n in (("train", 40), ("valid", 8), ("test", 8)):
        rows = [{"source": f"number {i} of {split}", "target": f"the answer is {i}."} for i in range(n)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = " ".join(f"--{split}_file {tmp_path}/{split}.jsonl" for split in ("train", "valid", "test"))
    assert train(tmp_path / "run", f"{files} --max_source_len 16") == 0
    flags = f"--eval --num_samples 8 --seq2seq_candidates 2 --decoding nucleus,greedy --scorer {programs.scorer}"
    assert again(tmp_path / "run", flags) == 0
    result = json.loads((tmp_path / "run/evaluation/eval-valid.json").read_text())
    assert "model/seq2seq/sacrebleu" in result and "model/seq2seq/greedy/rougeL" in result
    pairs = json.loads((tmp_path / "run/evaluation/eval-valid-seed42-greedy-pairs.json").read_text())
    assert all(len(pair["candidates"]) == 2 and len(set(pair["candidates"])) == 1 for pair in pairs)


def test_a_program_that_samples_from_denoisers_names_the_one_that_samples_from_this(baseline, capsys):
    with pytest.raises(SystemExit):
        sample([str(baseline), "-n", "2", "--device", "cpu"])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"which has no denoiser: {CAUSAL_LM.name} --eval --resume_dir {baseline} --num_samples" in line


def test_a_dry_run_trains_nothing(train, baseline, tmp_path, capsys):
    assert train(tmp_path / "run", "--dry_run") == 0
    assert "causal language model" in capsys.readouterr().out and not (tmp_path / "run").exists()
    assert train(tmp_path / "run", f"--dry_run --verbose --model {baseline / 'model'} --lora_rank 4") == 0
    assert "lora_A" in capsys.readouterr().out and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model {empty}", "holds no config.json"),
        ("--model {bart}", "encoder-decoder"),
        ("--train_file {nothing}", "nothing.txt"),
        ("--decoding beam", "nucleus or greedy"),
        ("--class_id 1", "--class_conditional"),
        ("--d_model 33", "not a multiple of --heads"),
        ("--lora_rank 4 --model {absent}", "no such folder"),
        ("--model {run}/model --max_seq_len 4000", "more than the 64 tokens"),
        ("--tokenizer {empty}", "--tokenizer"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(train, baseline, chain, tmp_path, flags, message):
    (tmp_path / "nothing.txt").write_text("")
    (tmp_path / "empty").mkdir()
    places = dict(
        empty=tmp_path / "empty",
        bart=chain / "lm",
        absent=tmp_path / "a",
        run=baseline,
        nothing=tmp_path / "nothing.txt",
    )
    with pytest.raises(UserError, match=message) as error:
        train(tmp_path / "run", flags.format(**places))
    assert "\n" not in str(error.value)


def test_a_pretrained_model_takes_smaller_steps(baseline):
    def rate(flags: str) -> float:
        return parse(CAUSAL_LM, f"--train_file x.txt {flags}".split()).config.optimizer.learning_rate

    assert rate("") == 1e-3
    assert rate("--model m") < rate("--model m --lora_rank 4") < 1e-3
    assert rate("--model m --learning_rate 0.5") == 0.5
