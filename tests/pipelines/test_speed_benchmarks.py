"""The benchmarks of speed: tiny runs, resuming, and the rule by which two results differ."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import annealing, decoding, loss_tables, quality_speed, speculative_decoding, throughput
from benchmarks.quality_speed import BASELINE, differs, summarize, sweep, title, unique_settings
from benchmarks.throughput_networks import Networks
from benchmarks.throughput_report import IN_BF16, PRECISION, ROUNDING, differences, slower
from benchmarks.throughput_sampling import make_generator
from benchmarks.throughput_sizes import OFF, SIZES, Case, Maker, Switches
from evaluation import local_lm
from pipelines import quickstart
from pipelines.cli.presets import PRESETS
from utils.errors import UserError

SMALL = "--size small --device cpu --compile off"  # flags of throughput


def rows(setting: str, values: list[float]) -> list[dict]:
    return [
        {"setting": setting, "calls": 10, "seed": i, "mauve": value, "diversity": 0.4, "seconds": 1.0}
        for i, value in enumerate(values)
    ]


def test_the_sweep_has_the_baseline_the_presets_and_each_other_setting_once():
    names = [title(setting) for setting in sweep([10, 25])]
    assert names[0] == title(BASELINE) and len(names) == len(set(names))
    assert title({k: v for k, v in PRESETS["fast"].items() if k != "decoding" and v is not None}) in names
    assert {"ddim karras 10", "heun log_snr 25"} <= set(names)


def test_equal_settings_are_one_row_and_students_need_different_names():
    few = {"sampler": "dpmpp", "time_grid": "uniform", "sampling_timesteps": 4}
    assert unique_settings([BASELINE, few, dict(BASELINE), dict(few)]) == [BASELINE, few]
    one, other = ({**few, "student": f"runs/{folder}/few"} for folder in "ab")
    assert unique_settings([few, one, dict(one)]) == [few, one]
    with pytest.raises(UserError, match="--students runs/a/few and runs/b/few have the same name"):
        unique_settings([one, other])


def test_a_difference_counts_if_it_exceeds_two_deviations_and_the_threshold():
    base = rows("base", [0.70, 0.70, 0.70])
    assert not differs(rows("a", [0.689] * 3), base, "mauve", 0.02) and differs(
        rows("a", [0.67] * 3), base, "mauve", 0.02
    )
    wide = rows("base", [0.60, 0.70, 0.80])
    assert not differs(rows("a", [0.57] * 3), wide, "mauve", 0.02) and differs(
        rows("a", [0.5] * 3), wide, "mauve", 0.02
    )
    found = summarize([*rows(title(BASELINE), [0.7, 0.7]), *rows("other", [0.6, 0.6])])
    assert [entry["misses"] for entry in found] == [[], ["mauve"]]
    with_grammar = [{**row, "grammatical": 0.9} for row in rows(title(BASELINE), [0.7, 0.7])]
    found = summarize([*with_grammar, *rows("other", [0.7, 0.7])])
    assert [entry["misses"] for entry in found] == [[], ["grammatical"]], "a missing metric counts as worse"


def test_a_schedule_reaches_the_plain_run_at_its_final_value():
    points = [(100, 1.0, 0.5), (200, 2.0, 0.3), (300, 3.0, 0.2)]
    assert annealing.reached(points, 0.3, falls=True) == (200, 2.0)
    assert annealing.reached(points, 0.1, falls=True) is None and annealing.reached(points, 0.4, falls=False) == (
        100,
        1.0,
    )


@pytest.mark.slow
def test_quality_against_speed_of_a_tiny_run(programs, chain, tmp_path, monkeypatch):
    argv = [str(chain / "diff"), "--output_dir", str(tmp_path), "--seeds", "2", "--num_samples", "8", "--device", "cpu"]
    argv += ["--scorer", str(programs.scorer), "--settings", "sampler=dpmpp,time_grid=karras,sampling_timesteps=3"]
    monkeypatch.setitem(BASELINE, "sampling_timesteps", 4)
    assert quality_speed.main(argv) == 0
    lines = (tmp_path / "rows.jsonl").read_text()
    assert quality_speed.main(argv) == 0
    assert (tmp_path / "rows.jsonl").read_text() == lines and len(lines.splitlines()) == 4, (
        "a second call makes no row again"
    )
    settings = json.loads((tmp_path / "result.json").read_text())["settings"]
    counted = [("ddpm uniform 4", 4, 2), ("dpmpp karras 3", 3, 2)]
    assert [(entry["setting"], entry["calls"], entry["seeds"]) for entry in settings] == counted
    assert quality_speed.main([*argv, "--num_samples", "6"]) == 0
    assert (tmp_path / "rows.jsonl").read_text().count("\n") == 8, "other texts are other rows"
    result = json.loads((tmp_path / "result.json").read_text())
    assert [(entry["setting"], entry["calls"], entry["seeds"]) for entry in result["settings"]] == counted
    assert result["texts"] == 6
    assert "grammatical" in settings[0] and (tmp_path / "quality_speed.png").stat().st_size > 1000


@pytest.mark.slow
def test_annealing_is_compared_on_a_tiny_run(programs, chain, tmp_path):
    flags = (
        f"{programs.data} --latent_model_path {chain / 'ae'} --max_seq_len 40 --tx_dim 64 --tx_depth 2 --device cpu "
        f"--num_train_steps 6 --train_batch_size 8 --eval_batch_size 8 --num_samples 4 --sampling_timesteps 2 "
        f"--log_every 1 --decoding greedy --scorer {programs.scorer} --save_and_sample_every 3 --lr_warmup_steps 2"
    )
    assert annealing.main(["--output_dir", str(tmp_path), "--schedules", "linear", "--", *flags.split()]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["schedule"] for row in result["rows"]] == ["normal", "linear"]
    plain = result["rows"][0]
    assert plain["reached_loss"] == "1 of 1" and plain["steps_to_loss"] <= 6, "the plain run reaches its own final loss"
    for runs in result["curves"].values():
        assert [step for step, _, _ in runs[0]["loss"]] == [1, 2, 3, 4, 5, 6] and len(runs[0]["mauve"]) == 2


def test_guided_classes_are_sampled_and_a_run_on_pairs_is_rejected(
    programs, chain, tales_folder, tmp_path, monkeypatch, capsys
):
    flags = "--class_conditional --cls_free_guidance 2 --num_train_steps 1"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", tmp_path / "classes", flags) == 0
    argv = ["--output_dir", str(tmp_path / "out"), "--seeds", "1", "--num_samples", "4", "--device", "cpu"]
    few = [*argv, "--scorer", str(programs.scorer), "--settings", "sampler=dpmpp,sampling_timesteps=2"]
    monkeypatch.setitem(BASELINE, "sampling_timesteps", 3)
    assert quality_speed.main([str(tmp_path / "classes"), *few]) == 0
    found = json.loads((tmp_path / "out" / "result.json").read_text())["settings"]
    assert [entry["calls"] for entry in found] == [6, 4], "guided steps call the network for both branches"
    files = " ".join(f"--{split}_file {tales_folder}/pairs_{split}.jsonl" for split in ("train", "valid", "test"))
    flags = f"{files} --num_train_steps 1 --num_samples 2 --seq2seq_candidates 1"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", tmp_path / "pairs", flags) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        quality_speed.main([str(tmp_path / "pairs"), *few])
    assert "samples from source texts: use --eval" in capsys.readouterr().err


def test_the_scorer_is_trained_before_the_schedules(programs, chain, tmp_path, monkeypatch):
    """Otherwise the first run would train it, and its seconds would include that."""
    small = partial(local_lm.LocalLMOptions, steps=3, width=32, layers=1, heads=2)
    monkeypatch.setattr(local_lm, "LocalLMOptions", small)
    flags = f"{programs.data} --latent_model_path {chain / 'ae'} --device cpu".split()
    assert annealing.train_scorer(tmp_path, [*flags, "--scorer", str(programs.scorer)]) is None
    assert annealing.train_scorer(tmp_path, flags) == tmp_path / "scorer"
    assert (tmp_path / "scorer" / local_lm.INFO_FILE).is_file()


@pytest.mark.slow
def test_losses_side_by_side_agree(tmp_path):
    argv = f"--output_dir {tmp_path} --steps 3 --batch 12"
    columns = ["plain", "cached", "bf16", "accumulated", "two processes"]
    assert loss_tables.main([*argv.split(), "--columns", ",".join(columns)]) == 0
    result = json.loads((tmp_path / "losses.json").read_text())
    for stage, found in result["largest_differences"].items():
        assert all(len(result["losses"][stage][name]) == 3 for name in columns)
        assert 0 < found.pop("bf16") < 2e-2
        assert found.keys() == {"cached", "accumulated", "two processes"} and all(x < 1e-5 for x in found.values())
    assert (tmp_path / "table.txt").read_text().count("largest difference") == 2


@pytest.mark.slow
def test_decoding_methods_are_compared(chain, tales_folder, tmp_path):
    lines = (tales_folder / "valid.jsonl").read_text().splitlines()
    (tmp_path / "texts.txt").write_text("\n".join(json.loads(line)["text"] for line in lines))
    argv = f"--enc_dec_model {chain / 'lm'} --texts {tmp_path / 'texts.txt'} --output_dir {tmp_path} --batch 6"
    assert decoding.main([*argv.split(), "--max_seq_len", "40", "--rounds", "1", "--device", "cpu"]) == 0
    rows = json.loads((tmp_path / "decoding.json").read_text())["rows"]
    assert len(rows) == 2 * 3 * len(decoding.METHODS)
    assert all(row["same_texts"] == row["texts"] == 6 for row in rows if "bf16" not in row["way"])


@pytest.mark.slow
def test_throughput_writes_its_table(tmp_path):
    argv = f"--output_dir {tmp_path} {SMALL} --rounds 1 --seconds 0.01"
    argv += " --parts denoiser,sampling,guidance"
    assert throughput.main(argv.split()) == 0
    result = json.loads((tmp_path / "throughput.json").read_text())
    cases = {row["case"] for row in result["rows"]}
    assert {"all on", "everything off", "guided, batch 128", "end to end, 25 steps, greedy, all on"} <= cases
    sampling = [row for row in result["rows"] if row["part"] == "sampling"]
    assert all(row["model_flops_per_step"] > 0 and row["steps_per_second_allowed"] > 0 for row in sampling)
    flops = {row["case"]: row["model_flops_per_step"] for row in sampling}
    once = flops["denoise, 25 steps, all on"] + flops["decode, greedy, all on"]
    assert flops["end to end, 25 steps, greedy, all on"] == pytest.approx(once, rel=0.01), "no text is drawn twice"
    assert result["beyond_precision"] == [] and result["loss_differences"]["denoiser: all on"] > 0
    assert all(row["steps_per_second"]["median"] > 0 for row in result["rows"])
    if sys.platform == "linux":
        assert all(1e8 < row["peak_memory_bytes"] < 1e11 for row in result["rows"])
    assert "everything off" in (tmp_path / "table.txt").read_text()


def test_throughput_measures_the_named_cases_and_judges_each_switch(tmp_path, capsys):
    argv = f"--output_dir {tmp_path} {SMALL} --rounds 2 --steps 1 --batch 2 --parts denoiser,sampling"
    argv += " --profile"
    names = ["denoiser: all on", "without fused optimizer", "greedy+all on", "greedy+without dynamic batching"]
    assert throughput.main([*argv.split(), "--cases", ",".join(names)]) == 0
    result = json.loads((tmp_path / "throughput.json").read_text())
    measured = ["all on", "without fused optimizer", "decode, greedy, all on"]
    measured += ["decode, greedy, without dynamic batching", "end to end, 25 steps, greedy, all on"]
    assert [row["case"] for row in result["rows"]] == measured
    assert all(len(row["steps_per_second"]["rounds"]) == result["rounds"] == 2 for row in result["rows"])
    assert result["ratios"].keys() == {
        "denoiser: all on / without fused optimizer",
        "sampling: decode, greedy: all on / without dynamic batching",
    }
    assert result["slower"] == [name for name, value in result["ratios"].items() if value < 0.97]
    shown = capsys.readouterr().out
    assert "switches that make a case slower (below 0.97): " in shown and "beyond it: none" in shown
    assert result["loss_precision"] == {"denoiser: all on / without fused optimizer": allowed(result)}
    for part in ("denoiser", "sampling"):
        assert "Self CPU" in (tmp_path / f"profile_{part}.txt").read_text()
    with pytest.raises(SystemExit) as exit_info:
        throughput.main([*argv.split(), "--cases", "none"])
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --cases 'none' names no case of --parts denoiser,sampling: they are 'all on', ")


def allowed(result: dict) -> float:
    """Of a switch that rounds, in the precision of this machine."""
    return IN_BF16 if "bf16 instructions" not in result["not_here"] else ROUNDING


def test_losses_are_compared_with_and_without_each_switch_within_its_precision():
    def row(case: str, losses: list[float], **switches) -> dict:
        values = vars(Switches()) if case != "everything off" else vars(OFF)
        return {"part": "denoiser", "case": case, "first_losses": losses, "switches": {**values, **switches}}

    rows = [
        row("all on", [1.0, 1.003]),
        row("without cache", [1.0, 1.0], cache=False),
        row("without bf16", [1.0, 1.0], bf16=False, bf16_copy=False, frozen_copy=False),
        row("without freed memory", [1.0, 1.0], freed_memory="return"),
        row("muon", [1.0, 3.0], optimizer="muon"),
        row("everything off", [1.0, 1.0005]),
    ]
    found = differences(rows)
    assert {name: precision for name, (_, precision) in found.items()} == {
        "denoiser: all on": IN_BF16,
        "denoiser: without cache": IN_BF16,
        "denoiser: without bf16": PRECISION["cache"],
        "denoiser: without freed memory": IN_BF16,
        "denoiser: all on / without cache": IN_BF16,
        "denoiser: all on / without bf16": IN_BF16,
        "denoiser: all on / without freed memory": 0.0,
    }
    assert found["denoiser: all on"][0] == pytest.approx(0.0025 / 1.0005)
    assert [name for name, (value, precision) in found.items() if value > precision] == [
        "denoiser: all on / without freed memory"
    ]
    float32 = {**vars(Switches()), "bf16": False}
    rows = [row("all on", [1.0], **float32), row("without fused optimizer", [1.0], **{**float32, "fused": False})]
    assert differences(rows) == {"denoiser: all on / without fused optimizer": (0.0, ROUNDING)}
    assert ROUNDING < PRECISION["cache"] < IN_BF16 == PRECISION["bf16"]
    said = (Path(quickstart.__file__).parents[1] / "docs/scaling.md").read_text()
    assert all(f"{value:.1e}" in said for value in (IN_BF16, PRECISION["cache"], ROUNDING))


def test_the_copy_of_the_frozen_model_changes_no_loss_and_the_autoencoder_names_its_cache(tmp_path, capsys):
    argv = f"--output_dir {tmp_path} {SMALL} --rounds 1 --steps 3 --batch 2 --parts autoencoder"
    assert throughput.main([*argv.split(), "--cases", "autoencoder: all on,without frozen copy"]) == 0
    result = json.loads((tmp_path / "throughput.json").read_text())
    losses = {row["case"]: row["first_losses"] for row in result["rows"]}
    if "bf16 instructions" in result["not_here"]:
        assert losses.keys() == {"all on"}, "without bf16 there is no copy"
    else:
        assert losses["all on"] == losses["without frozen copy"] and len(losses["all on"]) >= 3
        assert result["loss_precision"] == {"autoencoder: all on / without frozen copy": 0.0}
    assert result["beyond_precision"] == []
    assert "--cache_encoder_states float16), which are off by default" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone keeps freed memory")
def test_a_case_that_returns_freed_memory_is_timed_in_a_second_process(tmp_path):
    argv = f"--output_dir {tmp_path} {SMALL} --rounds 1 --steps 2 --batch 2 --parts denoiser"
    names = "denoiser: all on,without freed memory,everything off"
    assert throughput.main([*argv.split(), "--cases", names, "--dropout", "on"]) == 0
    rows = {row["case"]: row for row in json.loads((tmp_path / "throughput.json").read_text())["rows"]}
    assert [row["switches"]["freed_memory"] for row in rows.values()] == ["keep", "return", "return"]
    assert [row["switches"]["dropout"] for row in rows.values()] == ["bits", "bits", "uniform"]
    one, other, off = rows.values()
    assert one["first_losses"] == other["first_losses"] and len(off["first_losses"]) == 5
    assert one["model_flops_per_step"] == other["model_flops_per_step"] and other["peak_memory_bytes"] > 1e8


def test_texts_of_random_weights_end_at_lengths_that_their_states_say(tmp_path):
    networks = Networks(replace(SIZES["small"], sampled=48), torch.device("cpu"), tmp_path)
    found = []
    for switches in (Switches(), replace(Switches(), own_cache=False), OFF):
        switches = replace(networks.available(switches), freed_memory="keep", bf16=False)
        networks.set_kernels(switches)
        generator = make_generator(networks, switches, 2)
        texts = generator.decode(generator.sample_latents(0, 0), "greedy", 0)
        found.append([len(text.split()) for text in texts])
    assert found[0] == found[1] == found[2], "whatever decodes them"
    assert min(found[0]) > 8 and max(found[0]) <= 32 and max(found[0]) - min(found[0]) > 8


def test_throughput_is_saved_after_each_case_and_after_each_round():
    """So that a run that is stopped leaves what it has measured."""

    class Device:
        type = "cpu"

    def maker(name: str) -> Maker:
        return Maker("guidance", name, lambda: Case("guidance", name, lambda k: None, 1))

    saved: list[list[int]] = []

    def save(found: list) -> None:
        saved.append([len(one.seconds) for one in found])

    machine = SimpleNamespace(device=Device(), measure=lambda: None)
    throughput.measure([maker("a"), maker("b")], machine, 1, 1.0, 1, save)
    assert saved == [[1], [1, 1]]
    saved.clear()
    throughput.measure([maker("a"), maker("b")], machine, 3, 1.0, 1, save)
    assert saved == [[1, 1], [2, 2], [3, 3]]


def test_a_switch_is_slower_below_its_threshold_alone():
    found = {
        "denoiser: all on / without cache": 0.969,
        "denoiser: all on / without bf16": 0.971,
        "denoiser: all on / muon": 0.5,
        "denoiser: without bf16 / everything off": 0.5,
        "sampling: decode, beam: all on / everything off": 0.9,
        "guidance: seconds of a guided step / two calls, batch 128": 0.5,
    }
    assert slower(found) == ["denoiser: all on / without cache", "sampling: decode, beam: all on / everything off"]


def test_the_small_size_has_the_networks_of_the_quickstart():
    size, lm, autoencoder, denoiser = SIZES["small"], *(stage.flags.split() for stage in quickstart.STAGES)

    def value(flags: list[str], name: str) -> int:
        return int(flags[flags.index(f"--{name}") + 1])

    assert [value(lm, name) for name in ("d_model", "layers", "heads")] == [size.width, size.layers, size.heads]
    assert [value(autoencoder, n) for n in ("num_encoder_latents", "dim_ae", "num_layers", "train_batch_size")] == [
        size.latents, size.dim, size.ae_layers, size.ae_batch,
    ]  # fmt: skip
    assert [value(denoiser, n) for n in ("tx_dim", "tx_depth", "train_batch_size", "sampling_timesteps")] == [
        size.tx_dim, size.tx_depth, size.batch, size.steps[1],
    ]  # fmt: skip
    assert size.dropout == ("--disable_dropout" not in denoiser) and size.skips == 0
    assert "--num_dense_connections" not in denoiser and "--l2_normalize_latents" in autoencoder
    assert value(denoiser, "max_seq_len") == size.tokens
    assert size.sampled == value(quickstart.EVALUATION.split(), "eval_batch_size")


def test_the_paper_size_is_that_of_the_published_recipe():
    size, scripts = SIZES["paper"], Path(quickstart.__file__).parents[1] / "scripts" / "lib"

    def value(name: str, recipe: str) -> int:
        return int(re.search(rf"--{name} (\d+)", (scripts / recipe).read_text()).group(1))

    names = {"num_encoder_latents": size.latents, "dim_ae": size.dim, "num_layers": size.ae_layers}
    for name, expected in {**names, "train_batch_size": size.ae_batch}.items():
        assert value(name, "autoencoder.sh") == expected, name
    names = {"tx_dim": size.tx_dim, "tx_depth": size.tx_depth, "num_dense_connections": size.skips}
    for name, expected in {**names, "train_batch_size": size.batch, "sampling_timesteps": size.steps[1]}.items():
        assert value(name, "latent_diffusion.sh") == expected, name
    published = [scripts.parent / "diffusion" / "bart_latent_v-pred.sh", scripts / "latent_diffusion.sh"]
    assert size.dropout == all("--disable_dropout" not in path.read_text() for path in published)


def test_drafts_are_measured_on_held_out_texts_and_on_samples(programs, chain, tmp_path, capsys):
    flags = f"--output_dir {tmp_path / 'drafter'} --latent_cache_dir {tmp_path / 'cache'} --config val_loss_examples=4"
    assert programs.draft_model(chain / "ae_l2", flags) == 0
    words = (
        f"--run {chain / 'diff'} --draft_model {tmp_path / 'drafter'} --output_dir {tmp_path} --sampling_timesteps 2"
    )
    assert speculative_decoding.main(f"{words} --batches 1,4 --texts 12 --rounds 1 --device cpu".split()) == 0
    found = json.loads((tmp_path / "speculative_decoding.json").read_text())
    kinds = [(row["latents"], row["batch"], row["texts"]) for row in found["rows"]]
    assert kinds == [(name, size, n) for name in ("held-out texts", "samples") for size, n in ((1, 12), (4, 12))]
    for row in found["rows"]:
        assert row["same_texts"] == row["texts"] and row["passes"] >= 1 and 0 <= row["tokens_right"] <= 1
        assert all(len(seconds) == 1 for seconds in row["seconds"].values())
    for row, size in zip(found["end_to_end"], (1, 4), strict=True):
        assert row["batch"] == size and row["same_texts"] == row["texts"] == 12 and row["passes"] >= 1
        assert row["faster"] > 0 and all(0 < share < 1 for share in row["decoding"].values())
    assert "12 of 12" in (tmp_path / "table.txt").read_text() and found["denoise_texts_per_second"] > 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        speculative_decoding.main(f"--run {chain / 'diff'} --output_dir {tmp_path / 'none'}".split())
    assert "has no draft model" in capsys.readouterr().err


@pytest.mark.slow
def test_every_throughput_case_runs_with_a_small_batch_and_one_step(tmp_path):
    argv = f"--output_dir {tmp_path} {SMALL} --rounds 1 --steps 1 --batch 2"
    assert throughput.main(argv.split()) == 0
    rows = json.loads((tmp_path / "throughput.json").read_text())["rows"]
    assert {row["part"] for row in rows} == set(throughput.PARTS) and len(rows) > 25
    assert all(row["steps_per_round"] == 1 for row in rows)
    assert all(row["first_losses"] for row in rows if row["part"] in throughput.PROJECTED)


@pytest.mark.parametrize("flags", ["--rounds 0", "--steps 0", "--batch -1", "--parts sampling,none"])
def test_invalid_arguments_of_throughput_give_one_error_line(flags, tmp_path, capsys):
    with pytest.raises(SystemExit):
        throughput.main(["--output_dir", str(tmp_path), *flags.split()])
    (line,) = capsys.readouterr().err.splitlines()
    assert flags.split()[0] in line
