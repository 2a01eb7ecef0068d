"""Runs on pairs: training, caches, sampling and evaluation; other context encoders, classes, encoder states."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from evaluation import classifiers
from latent_models.language_models import LanguageModel
from latent_models.tokenizers.training import train_tokenizer
from pipelines.sample import inputs_of
from pipelines.sample import main as sample
from pipelines.sampling.requests import read_requests, resolve_classes
from pipelines.steps.diffusion import DiffusionStep
from pipelines.text_diffusion import TextDiffusionPipeline
from utils import checkpoints
from utils.checkpoints import fingerprint
from utils.errors import UserError
from utils.records import Condition
from utils.trackers import read_metrics

SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def pairs(tales_folder) -> str:
    """Flags that name the pairs instead of the single texts."""
    return " ".join(f"--{split}_file {tales_folder / f'pairs_{split}.jsonl'}" for split in SPLITS)


@pytest.fixture(scope="module")
def other_lm(programs, tmp_path_factory) -> Path:
    """A language model of another width and vocabulary than the autoencoder's."""
    folder = tmp_path_factory.mktemp("other") / "lm"
    assert programs.pretrain(folder, "--d_model 32 --vocab_size 150 --num_train_steps 2") == 0
    return folder


@pytest.fixture(scope="module")
def t5(tales_folder, tmp_path_factory) -> Path:
    """A random T5, of another family than the autoencoder's BART."""
    from transformers import AutoModelForSeq2SeqLM, T5Config

    folder = tmp_path_factory.mktemp("t5") / "lm"
    ids = dict(vocab_size=200, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2)
    config = T5Config(d_model=48, d_kv=24, d_ff=96, num_layers=1, num_heads=2, **ids)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    texts = [json.loads(line)["src"] for line in (tales_folder / "pairs_train.jsonl").open()]
    train_tokenizer(texts, "word", 200, 64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run_on_pairs(programs, chain, pairs, tmp_path_factory) -> Path:
    """A run on pairs; the autoencoder's own language model encodes the sources."""
    folder = tmp_path_factory.mktemp("run_on_pairs") / "run"
    flags = f"{pairs} --self_condition --num_train_steps 4 --save_and_sample_every 2 --seq2seq_candidates 3"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae_l2'}", folder, flags) == 0
    return folder


def test_training_evaluates_candidates_and_keeps_the_best_checkpoint(run_on_pairs, tales_folder):
    result = json.loads((run_on_pairs / "metrics.json").read_text())
    for kind in ("", "mbr_", "oracle_", "chance_"):
        for name in ("rouge1", "rougeL", "sacrebleu"):
            assert isinstance(result[f"model/seq2seq/{kind}{name}"], float)
    for name in ("diversity", "memorization", "perplexity", "distinct_candidates", "linear_auc"):
        assert f"model/seq2seq/{name}" in result
    assert result["model/seq2seq/rougeL"] <= result["model/seq2seq/oracle_rougeL"]
    assert result["protocol"]["candidates"] == 3 and result["protocol"]["mbr_utility"] == "rouge2"
    assert any("BERTScore is skipped" in note for note in result["protocol"]["skipped"])
    records = json.loads((run_on_pairs / "greedy-pairs-2.json").read_text())
    assert len(records) == 4 and all(len(r["candidates"]) == 3 for r in records)
    assert all(r["sample"] == r["candidates"][0] and r["chosen"] in r["candidates"] for r in records)
    known = [json.loads(line) for line in (tales_folder / "pairs_valid.jsonl").open()]
    assert all({"src": r["source"], "trg": r["reference"]} in known for r in records)
    best = checkpoints.load_best(run_on_pairs).metadata["best"]
    scores = {
        line["step"]: line["model/seq2seq/rougeL"]
        for line in read_metrics(run_on_pairs)
        if "model/seq2seq/rougeL" in line
    }
    assert best["metric"] == "rougeL" and best["value"] == max(scores.values()) == scores[best["step"]]


def test_evaluation_uses_the_best_checkpoint_and_changes_no_file(programs, run_on_pairs, contents, tmp_path):
    before = contents(run_on_pairs)
    for name, flags in (
        ("best", ""),
        ("newest", "--config newest_checkpoint=true"),
        ("guided", "--cls_free_guidance 3"),
    ):
        flags += f" --eval --seq2seq_candidates 2 --mbr_utility sacrebleu --output_dir {tmp_path / name}"
        assert programs.again("diffusion", run_on_pairs, flags) == 0
    assert contents(run_on_pairs) == before
    results = {p.name: json.loads((p / "evaluation/eval-valid.json").read_text()) for p in tmp_path.iterdir()}
    best = {"checkpoint": "best", "step": checkpoints.load_best(run_on_pairs).step}
    for name, weights in (("best", best), ("guided", best), ("newest", {"checkpoint": "newest", "step": 4})):
        assert weights.items() <= results[name]["protocol"].items()
    assert results["best"]["protocol"]["mbr_utility"] == "sacrebleu"
    assert "model/seq2seq/guide3/mbr_rougeL" in results["guided"]
    assert results["guided"]["protocol"]["cls_free_guidance"] == 3
    assert {"reference/val_perplexity", "reference/val_linear_auc"} <= results["best"].keys()


@pytest.mark.parametrize("form", ["txt", "jsonl", "csv"])
def test_candidates_are_written_for_sources_without_references(programs, run_on_pairs, tmp_path, capsys, form):
    sources = ["Ben ran to the garden.", "Later she sent it.", "Anna sat in town.", "Later she sent it."]
    file, write = tmp_path / f"asked.{form}", {"txt": "{}", "jsonl": '{{"src": "{}"}}', "csv": "{}"}[form]
    file.write_text("".join(write.format(line) + "\n" for line in (["src"] if form == "csv" else []) + sources))
    flags = f"--eval --valid_file {file} --seq2seq_candidates 2 --num_samples 2 --output_dir {tmp_path / 'out'}"
    assert programs.again("diffusion", run_on_pairs, flags) == 0
    said = capsys.readouterr().err
    assert "asked." + form + " holds 4 sources without references" in said
    assert "texts are written for the first 2 of 3 sources: raise --num_samples" in said
    records = json.loads((tmp_path / "out/evaluation/eval-valid-seed42-greedy-pairs.json").read_text())
    assert [r["source"] for r in records] == sources[:2], "in the order of the file"
    assert all(r["references"] == [] and len(r["candidates"]) == 2 and r["chosen"] in r["candidates"] for r in records)
    found = json.loads((tmp_path / "out/evaluation/eval-valid.json").read_text())
    left_out = "linear_auc, rouge, stem_rouge, sacrebleu, diffuseq, bertscore, oracle_rouge"
    assert found["protocol"]["skipped"] == [f"left out, since the sources have no references: {left_out}"]
    assert found["protocol"]["num_references"] == 0 and left_out in said
    assert {"model/seq2seq/perplexity", "model/seq2seq/distinct_candidates", "model/seq2seq/div4"} <= found.keys()
    assert not any("rouge" in key or "bleu" in key.replace("self_bleu", "") or "oracle" in key for key in found)
    assert not any(key.startswith("reference/") for key in found)


def test_sources_without_references_are_not_trained_on(programs, chain, pairs, tmp_path):
    (tmp_path / "asked.txt").write_text("Ben ran to the garden.\n")
    flags = f"{pairs} --valid_file {tmp_path / 'asked.txt'}"
    with pytest.raises(UserError, match="asked.txt holds sources without references .no column 'trg'., for which only"):
        programs.diffusion(f"--latent_model_path {chain / 'ae'}", tmp_path / "run", flags)
    (tmp_path / "asked.jsonl").write_text('{"src": "a"}\n{"src": "b", "trg": "c"}\n')  # a row without text is one row
    with pytest.raises(UserError, match="asked.jsonl, line 1: no column 'trg', which other rows have"):
        programs.diffusion(f"--latent_model_path {chain / 'ae'}", tmp_path / "run", flags.replace(".txt", ".jsonl"))


def test_the_test_split_is_evaluated_over_five_seeds(programs, run_on_pairs, tmp_path):
    flags = f"--eval_test --seq2seq_candidates 2 --num_samples 3 --decoding greedy,beam --output_dir {tmp_path}"
    assert programs.again("diffusion", run_on_pairs, flags) == 0
    result = json.loads((tmp_path / "evaluation/eval-test.json").read_text())
    for prefix in ("model/seq2seq/test/", "model/seq2seq/test/beam/"):
        assert len(result[f"{prefix}mbr_rougeL"]["values"]) == 5 and f"{prefix}rougeL_seed44" in result
    assert len(list((tmp_path / "evaluation").glob("eval-test-seed4?-greedy-pairs.json"))) == 5
    assert len(list((tmp_path / "evaluation").glob("eval-test-seed4?-*-nearest.json"))) == 10
    records, nearest, trajectory = (
        json.loads((tmp_path / "evaluation" / f"{name}.json").read_text())
        for name in ("eval-test-seed42-greedy-pairs", "eval-test-seed42-greedy-nearest", "trajectory")
    )
    assert len(nearest) == 3 and [record["source"] for record in records] == trajectory["sources"][:3]
    assert len(trajectory["sources"]) == len(trajectory["views"][0]["texts"]) == 6


def test_each_source_is_encoded_once_for_all_candidates(run_on_pairs, encodings):
    pipeline = TextDiffusionPipeline.from_pretrained(
        run_on_pairs, device="cpu", sampling_timesteps=3, eval_batch_size=8
    )
    sources = [f"One night Leo ran to the {place}." for place in ("market", "river", "beach", "forest", "garden")]
    rows = pipeline.candidates(sources, 4, decoding="greedy")
    assert [len(row) for row in rows] == [4] * 5
    assert sum(encodings) == 5, "once per source, not per candidate or step"
    assert pipeline.candidates(sources[:3], 4, decoding="greedy") == rows[:3], "fewer sources are a prefix"
    chosen = pipeline.generate_from_sources(sources, candidates=4, decoding="greedy")
    assert all(text in row for text, row in zip(chosen, rows, strict=True))
    assert len(pipeline(2, decoding="greedy")) == 2, "samples without a source use the null condition"


def test_cached_sources_give_the_same_losses_as_sources_encoded_in_training(
    programs, chain, pairs, other_lm, tmp_path, encodings, capsys
):
    space = f"--latent_model_path {chain / 'ae'} --context_encoder {other_lm}"
    cache = f"{pairs} --latent_cache_dir {tmp_path / 'cache'} --num_samples 1 --seq2seq_candidates 1"
    whole = f"{cache} --latent_cache_dtype float32"
    assert programs.diffusion(space, tmp_path / "one", whole) == 0
    assert sum(encodings) == 2 * 240 + 1, "texts and sources of both splits, once each; and one source sampled from"
    encodings.clear()
    assert programs.diffusion(space, tmp_path / "two", whole) == 0
    assert sum(encodings) == 1
    assert programs.diffusion(space, tmp_path / "live", f"{pairs} --no_latent_cache") == 0
    capsys.readouterr()
    assert programs.diffusion(space, tmp_path / "half", cache) == 0, "float16 is the default"
    encoded = dict(
        re.findall(r"the source states of the (\w+) split are encoded once, (.*) in float16", capsys.readouterr().err)
    )
    live = read_metrics(tmp_path / "live")
    for name, tolerance in (("one", 1e-5), ("half", 1e-3)):
        for one, other in zip(read_metrics(tmp_path / name), live, strict=True):
            for key in ("loss", "val_loss", "grad_norm"):
                assert one.get(key, 0) == pytest.approx(other.get(key, 0), rel=tolerance), (name, key)
    assert programs.diffusion(f"{space} --dry_run", tmp_path / "planned", cache) == 0
    planned = dict(re.findall(r"^  (\w+) sources +(.*)$", capsys.readouterr().out, re.M))
    assert planned == encoded and planned.keys() == {"train", "valid"}


def test_a_source_of_several_texts_is_encoded_once(programs, chain, tales_folder, other_lm, tmp_path, encodings):
    """And every text is trained with its own source: losses are those of sources that are encoded at each step."""
    sources = {}
    for split in SPLITS:
        rows = [json.loads(line) for line in (tales_folder / f"pairs_{split}.jsonl").open()]
        rows = [row | {"src": rows[i // 5]["src"]} for i, row in enumerate(rows)]
        sources[split] = {row["src"] for row in rows}
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = " ".join(f"--{split}_file {tmp_path / split}.jsonl" for split in SPLITS)
    flags = f"{files} --num_samples 1 --seq2seq_candidates 1 --latent_cache_dtype float32"
    space = f"--latent_model_path {chain / 'ae'} --context_encoder {other_lm}"
    assert programs.diffusion(space, tmp_path / "run", f"{flags} --latent_cache_dir {tmp_path / 'cache'}") == 0
    different = len(sources["train"]) + len(sources["valid"])
    assert sum(encodings) == 240 + different + 1 and different < 60
    assert programs.diffusion(space, tmp_path / "live", f"{flags} --no_latent_cache") == 0
    for one, other in zip(read_metrics(tmp_path / "run"), read_metrics(tmp_path / "live"), strict=True):
        assert one.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-5)
        assert one.get("val_loss", 0) == pytest.approx(other.get("val_loss", 0), rel=1e-5)


def test_a_model_of_another_family_may_encode_the_sources(programs, chain, pairs, t5, tmp_path):
    for name, flags in (("frozen", ""), ("trained", "--train_context_encoder")):
        space = f"--latent_model_path {chain / 'ae'} --context_encoder {t5} {flags}"
        assert programs.diffusion(space, tmp_path / name, pairs) == 0
        args = json.loads((tmp_path / name / "args.json").read_text())
        assert args["source_dim"] == 48 and args["max_source_len"] == 64, (
            "T5 has no maximum length, so that of the corpus counts"
        )
        assert programs.again("diffusion", tmp_path / name, "--eval --seq2seq_candidates 1") == 0


@pytest.mark.parametrize("flag", ["--context_encoder", "--enc_dec_model"])
def test_the_context_encoder_may_be_another_model(programs, chain, pairs, other_lm, tmp_path, flag):
    """The published commands name it by --enc_dec_model, together with --latent_model_path."""
    space = f"--latent_model_path {chain / 'ae'} {flag} {other_lm}"
    assert programs.diffusion(space, tmp_path / "run", f"{pairs} --max_source_len 20") == 0
    args = json.loads((tmp_path / "run/args.json").read_text())
    assert args["source_dim"] == 32 and args["context_model"] == str(other_lm) and args["max_source_len"] == 20
    assert programs.again("diffusion", tmp_path / "run", "--eval") == 0
    with pytest.raises(UserError, match="not the context encoder that .*--context_encoder"):
        programs.resume("diffusion", tmp_path / "run", f"--context_encoder {chain / 'lm'}")


def test_moved_runs_find_their_context_encoder(programs, chain, pairs, other_lm, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(other_lm, first / "context")
    space = f"--latent_model_path {chain / 'ae'} --context_encoder {first / 'context'}"
    assert programs.diffusion(space, first / "run", f"{pairs} --num_train_steps 4 --max_seconds 0") == 0
    first.rename(second)
    assert programs.again("diffusion", second / "run", "--eval") == 0
    assert programs.resume("diffusion", second / "run") == 0


def test_a_trained_context_encoder_is_saved_with_the_run(programs, chain, pairs, other_lm, tmp_path, encodings):
    space = f"--latent_model_path {chain / 'ae'} --context_encoder {other_lm} --train_context_encoder"
    flags = f"{pairs} --learning_rate 1e-2 --lr_warmup_steps 0 --num_train_steps 4 --self_condition --ema_decay 0"
    assert programs.diffusion(space, tmp_path / "run", flags) == 0
    checkpoint = checkpoints.load(tmp_path / "run")
    for part in ("model", "ema"):
        assert any(name.startswith("context.") for name in checkpoint.tensors[part]), part
        assert not any("decoder.layers" in name for name in checkpoint.tensors[part]), part
    pipeline = TextDiffusionPipeline.from_pretrained(tmp_path / "run", device="cpu", newest_checkpoint=True)
    trained = pipeline.sources.context.model.model.get_encoder().state_dict()
    fresh = LanguageModel.fingerprint(pipeline.sources.context.model)
    base = LanguageModel.from_pretrained(str(other_lm))
    moved = [name for name, x in base.model.get_encoder().state_dict().items() if not torch.equal(x, trained[name])]
    assert moved and fresh != base.fingerprint()
    assert programs.resume("diffusion", tmp_path / "run", "--num_samples 2") == 0  # no step is left to train
    encodings.clear()
    assert len(pipeline.candidates(["Leo ran to the market."] * 2, 3, decoding="greedy")) == 2
    assert encodings == [2]


@pytest.mark.parametrize(
    "flags",
    [
        "--self_condition --train_batch_size 8 --gradient_accumulation_steps 2 --save_and_sample_every 4",
        "--denoiser_variant states --self_condition --train_context_encoder --train_batch_size 16",
    ],
    ids=["cached", "trained-encoder"],
)
def test_a_run_on_pairs_resumes_exactly(programs, chain, pairs, stop_after, fingerprints, tmp_path, flags):
    flags += f" {pairs} --num_train_steps 8 --num_samples 2 --seq2seq_candidates 2"
    space = f"--latent_model_path {chain / 'ae'}"
    assert programs.diffusion(space, tmp_path / "whole", flags) == 0
    stop_after(DiffusionStep, 5)
    assert programs.diffusion(space, tmp_path / "parts", flags) == 143
    assert programs.resume("diffusion", tmp_path / "parts") == 0
    assert fingerprints(tmp_path / "whole") == fingerprints(tmp_path / "parts")
    best = [checkpoints.load_best(tmp_path / name) for name in ("whole", "parts")]
    assert best[0].metadata["best"] == best[1].metadata["best"]
    assert fingerprint(best[0].tensors["ema"]) == fingerprint(best[1].tensors["ema"])


@pytest.mark.parametrize("variant", ["latent", "states"])
def test_classes_and_sources_together_on_encoder_states(programs, chain, tales_folder, tmp_path, variant, capsys):
    """With both conditions, both networks, masks and guidance."""
    files = []
    for split in SPLITS:
        texts, both = (
            [json.loads(line) for line in (tales_folder / f"{name}{split}.jsonl").open()] for name in ("", "pairs_")
        )
        rows = [{"src": p["src"], "trg": p["trg"], "label": t["label"]} for t, p in zip(texts, both, strict=True)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files.append(f"--{split}_file {tmp_path / split}.jsonl")
    flags = f"{' '.join(files)} --class_conditional --self_condition --denoiser_variant {variant} --cls_free_guidance 2"
    assert programs.diffusion(f"--enc_dec_model {chain / 'lm'} --normalize_latent", tmp_path / "run", flags) == 0
    result = json.loads((tmp_path / "run/metrics.json").read_text())
    assert "model/seq2seq/guide2/mbr_rougeL" in result
    (path,) = (tmp_path / "run").glob("*-pairs-1.json")
    records = json.loads(path.read_text())
    labels = {(row["src"], row["trg"]): row["label"] for row in map(json.loads, (tmp_path / "valid.jsonl").open())}
    class_names = json.loads((tmp_path / "run/args.json").read_text())["class_names"]
    classifier = classifiers.load(tmp_path / "run/classifier", class_names)
    predicted = classifier.predict([r["sample"] for r in records])
    requested = [class_names.index(str(labels[r["source"], r["reference"]])) for r in records]
    correct = sum(a == b for a, b in zip(predicted, requested, strict=True))
    assert result["model/seq2seq/guide2/label_accuracy"] == pytest.approx(correct / len(records), abs=1e-12)
    predicted = classifier.predict([r["reference"] for r in records])
    correct = sum(a == b for a, b in zip(predicted, requested, strict=True))
    assert result["reference/val_label_accuracy"] == pytest.approx(correct / len(records), abs=1e-12)
    if variant == "latent":
        for wanted in ("2", "unconditional"):
            where = tmp_path / wanted
            flags = f"--eval --class_id {wanted} --num_samples 3 --output_dir {where}"
            assert programs.again("diffusion", tmp_path / "run", flags) == 0
            found = json.loads((where / "evaluation/eval-valid.json").read_text())
            assert ("model/seq2seq/guide2/label_accuracy" in found) == (wanted == "2")
        for wanted, message in (("7", "--class_id 7 is not a class"), ("all", "has a class of its own")):
            with pytest.raises(UserError, match=message):
                programs.again("diffusion", tmp_path / "run", f"--eval --class_id {wanted}")
    pipeline = TextDiffusionPipeline.from_pretrained(tmp_path / "run", device="cpu")
    if variant == "latent":
        check_json_lines_of_both(pipeline, tmp_path, capsys)
    seen, forward = [], pipeline.generator.denoiser.forward

    def watched(z, time, mask=None, condition=None, x0_self_cond=None, self_cond_mask=None):
        seen.append(condition)
        return forward(z, time, mask, condition, x0_self_cond, self_cond_mask)

    pipeline.generator.denoiser.forward = watched
    pipeline.candidates(["Leo ran to the market."], 2, decoding="greedy", class_id=1)
    assert seen[0].class_id.tolist() == [1] * 4 and seen[0].source.shape[0] == 4
    assert seen[0].keep_class.tolist() == seen[0].keep_source.tolist() == [True, True, False, False]


def check_json_lines_of_both(pipeline, folder: Path, capsys) -> None:
    """A class beside its source in each line: the texts are those of the pipeline given both."""
    names, file = pipeline.class_names, folder / "asked.jsonl"
    asked = [("Ben ran to the garden.", names[2]), ("Later she sent it.", names[0])]
    file.write_text("".join(json.dumps({"source": source, "class": c}) + "\n" for source, c in asked))
    capsys.readouterr()
    flags = f"--device cpu --source_file {file} -n 2 --format jsonl --output_dir {folder / 'samples'}"
    assert sample([str(folder / "run"), *flags.split()]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["source"], row["class"]) for row in rows] == [one for one in asked for _ in range(2)]
    sources = [source for source, _ in asked]
    for i, (_, c) in enumerate(asked):
        expected = pipeline.candidates(sources, 2, decoding="greedy", class_id=c)[i]
        assert [row["text"] for row in rows[2 * i : 2 * i + 2]] == expected
    requests = resolve_classes(read_requests(str(file)), None, names, folder / "run", 42, 1.0)
    condition = inputs_of(pipeline, requests, 42)(0, 2).condition
    assert condition.class_id.tolist() == [2, 0]
    expected = pipeline.sources.make_inputs(sources, 42)(0, 2).condition
    assert torch.equal(condition.source, expected.source) and torch.equal(condition.source_mask, expected.source_mask)


def test_ignore_sources_trains_on_the_targets_alone(programs, chain, pairs, tmp_path):
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", tmp_path / "run", f"{pairs} --ignore_sources") == 0
    args = json.loads((tmp_path / "run/args.json").read_text())
    assert args["seq2seq"] is False and "source_dim" not in args
    assert "model/greedy/local_lm_val_mauve" in json.loads((tmp_path / "run/metrics.json").read_text())
    assert programs.again("diffusion", tmp_path / "run", "--eval") == 0


def test_the_estimate_depends_on_the_source_and_not_under_the_null_condition(run_on_pairs):
    """The output layer starts at zero, so the test gives it random weights."""
    pipeline = TextDiffusionPipeline.from_pretrained(run_on_pairs, device="cpu")
    generator, context = pipeline.generator, pipeline.sources.context
    torch.manual_seed(0)
    generator.denoiser.eval()
    torch.nn.init.normal_(generator.denoiser.output_proj.weight)
    states, mask = context.encode(["Leo ran to the market.", "Anna went to the sea one night."], torch.device("cpu"),
                                  generator.autocast)  # fmt: skip
    condition = Condition.of(source=states, source_mask=mask)
    z = torch.randn(1, generator.space.length, generator.space.dim).expand(2, -1, -1)
    with torch.no_grad():
        one, other = generator.make_denoise_fn(condition, None)(z, torch.tensor([0.5, 0.5]), None)
        null, same = generator.make_denoise_fn(condition.null(), None)(z, torch.tensor([0.5, 0.5]), None)
    assert (one - other).abs().max() > 1e-3
    torch.testing.assert_close(null, same, atol=1e-5, rtol=1e-5)


def test_a_translation_corpus_is_evaluated_by_bleu_with_the_tokenizer_of_its_language(programs, chain, tmp_path):
    """The corpus's row in the catalog sets tokenizer, utility and best metric."""
    words = ["dog", "cat", "house", "river", "night"]
    for split in SPLITS:
        rows = [{"en": f"the {w} number {i} {split}", "de": f"{w} Nummer {i} {split}"} for i, w in enumerate(words)]
        file = tmp_path / "wmt14" / f"{split}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for pair, tokenizer in (("en-de", "intl"), ("de-en", "13a")):
        named = (
            f"--dataset_name wmt14-{pair} --data_dir {tmp_path} --train_file none --valid_file none --test_file none"
        )
        space = f"--latent_model_path {chain / 'ae'}"
        assert programs.diffusion(space, tmp_path / pair, f"{named} --seq2seq_candidates 2") == 0
        protocol = json.loads((tmp_path / pair / "metrics.json").read_text())["protocol"]
        assert protocol["bleu_tokenizer"] == tokenizer and protocol["mbr_utility"] == "sacrebleu"
        assert checkpoints.load_best(tmp_path / pair).metadata["best"]["metric"] == "sacrebleu"


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--max_source_len 20", "--max_source_len needs source texts, but .* has no sources"),
        ("--context_encoder {chain}/lm", "--context_encoder needs source texts"),
        ("--seq2seq_candidates 3", "--seq2seq_candidates needs source texts"),
        ("--ignore_sources", "--ignore_sources needs source texts"),
        ("{pairs} --max_source_len 100", "--max_source_len 100 is more than .*40"),
        ("{pairs} --context_encoder ./nowhere", "--context_encoder ./nowhere: no such folder"),
        ("{pairs} --context_encoder {tales}", "--context_encoder .* holds no config.json"),
        ("{pairs} --mbr_utility bertscore", "--mbr_utility bertscore needs a model"),
        ("{pairs} --best_metric mbr_bertscore", "--best_metric mbr_bertscore needs a model"),
        ("{pairs} --seq2seq_unconditional_prob 0 --cls_free_guidance 2", "--seq2seq_unconditional_prob is 0"),
    ],
)
def test_mistakes_with_sources_give_one_error_line(programs, chain, pairs, tales_folder, tmp_path, flags, message):
    flags = flags.format(chain=chain, pairs=pairs, tales=tales_folder)
    with pytest.raises(UserError, match=message) as refused:
        programs.diffusion(f"--latent_model_path {chain / 'ae'}", tmp_path / "run", flags)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_on_pairs_needs_a_corpus_of_pairs(programs, run_on_pairs, chain):
    with pytest.raises(UserError, match="was trained with sources, and .* has none"):
        programs.again("diffusion", run_on_pairs, f"--eval {programs.data}")
    with pytest.raises(UserError, match="--mbr_utility needs source texts, but .* was trained without"):
        programs.again("diffusion", chain / "diff", "--eval --mbr_utility rouge1")
    with pytest.raises(UserError, match="trained without sources"):
        TextDiffusionPipeline.from_pretrained(chain / "diff", device="cpu").candidates(["a"])


def test_a_dry_run_prints_the_context_encoder(programs, chain, pairs, other_lm, tmp_path, capsys):
    space = f"--latent_model_path {chain / 'ae'} --dry_run --verbose"
    named = "--dataset_name tales-pairs --train_file none --valid_file none --test_file none"
    for flags, shown in (
        (named, "context encoder (shared)"),
        (f"{named} --context_encoder {other_lm}", "context encoder "),
        (pairs, "context encoder (shared)"),
        (f"{pairs} --context_encoder {other_lm}", "context encoder "),
        (f"{pairs} --no_latent_cache", "context encoder (shared)"),
        (f"{pairs} --train_context_encoder", "context encoder "),
        (f"{named} --context_encoder {other_lm} --train_context_encoder", "context encoder "),
    ):
        capsys.readouterr()
        assert programs.diffusion(space, tmp_path / "run", flags) == 0
        out = capsys.readouterr().out
        assert shown in out and "source_tokens.proj" in out
        cached = flags.startswith(pairs) and "--no_latent_cache" not in flags
        assert ("train texts" in out) == cached
        assert ("train sources" in out) == (cached and "--train_context_encoder" not in flags)


def test_lengths_of_samples_follow_training_pairs_with_similar_sources(programs, chain, tmp_path):
    """Short sources have short texts here and long ones long texts. Each candidate of a source has its own length."""
    rows = [{"src": "the dog", "trg": "a cat"}] * 60
    rows += [{"src": "the dog ran home and the cat sat down", "trg": "one " * n + "end"} for n in (9, 12)] * 30
    for split in SPLITS:
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = " ".join(f"--{split}_file {tmp_path / split}.jsonl" for split in SPLITS)
    assert programs.diffusion(f"--enc_dec_model {chain / 'lm'}", tmp_path / "run", files) == 0
    pipeline = TextDiffusionPipeline.from_pretrained(tmp_path / "run", device="cpu")
    generator, tokens = pipeline.generator, LanguageModelTokens(chain / "lm")
    sources = [rows[0]["src"], rows[-1]["src"]]
    inputs = pipeline.sources.make_inputs(sources, 42)
    mask = generator.sample_latents(1, 0, lambda b, n, g: inputs(0, 2).repeat(8), 16).mask.sum(1).view(2, 8)
    short, long = tokens.count(rows[0]["trg"]), {tokens.count(rows[-2]["trg"]), tokens.count(rows[-1]["trg"])}
    assert set(mask[0].tolist()) == {short}
    assert set(mask[1].tolist()) == long, "both lengths appear among the candidates"
    fewer = generator.sample_latents(1, 0, lambda b, n, g: inputs(0, 1).repeat(8), 16).mask.sum(1)
    assert torch.equal(fewer, mask[0])


class LanguageModelTokens:
    def __init__(self, folder: Path) -> None:
        self.tokenizer = LanguageModel.from_pretrained(str(folder)).tokenizer

    def count(self, text: str) -> int:
        return len(self.tokenizer(text)["input_ids"])
