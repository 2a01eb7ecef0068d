"""Flags from dataclasses: precedence, abbreviations, letter case, refusals in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import pytest

from utils.cli.args_io import write_args
from utils.cli.flags import flag
from utils.cli.help import help_text
from utils.cli.parse import parse
from utils.cli.settings import Program, Settings, group
from utils.errors import UserError, user_message
from utils.options import LoopOptions, OptimizerOptions, RunOptions


@dataclass
class Net:
    tx_dim: int = flag(512, "width", unit="channels", at_least=1, published=True)
    tx_depth: int = flag(6, "depth", published=True)
    tx_new: int = flag(1, "a flag that was not published")
    self_condition: bool = flag(False, "feed back")
    cached: bool = flag(True, "on by default")
    max_seq_len: int = flag(64, "longest text")


@dataclass
class Sampling:
    sampler: str = flag("ddpm", "process", choices=("ddpm", "ddim", "DPMpp"))
    eta: float | None = flag(None, "noise", unit="factor")
    rate: float = flag(0.5, "step size", above=0, at_most=1)
    texts: int = flag(3, "rows of the log", config_only=True)
    num_samples: int = flag(16, "how many")
    l2_normalize_latents: bool = flag(False, "norm", may_change="never", published=True)


@dataclass
class Evaluation:
    eval: bool = flag(False, "validation", may_change="invocation", published=True)
    eval_test: bool = flag(False, "test", may_change="invocation", published=True)


@dataclass
class Config:
    network: Net = group(Net, "network")
    sampling: Sampling = group(Sampling, "sampling", flags={"may_change": "eval"})
    evaluation: Evaluation = group(Evaluation, "evaluation")
    optimizer: OptimizerOptions = group(OptimizerOptions, "optimization", lr_warmup_steps=500)
    loop: LoopOptions = group(LoopOptions, "loop")
    run: RunOptions = group(RunOptions, "run", save_dir="saved_tests")


PROGRAM = Program(
    name="train.py",
    description="A program.",
    config=Config,
    abbreviates=True,
    deprecated={"amp": "use --mixed_precision", "milestone": "the newest checkpoint is taken"},
)


def settings(*argv: str, program: Program[Config] = PROGRAM) -> Settings[Config]:
    return parse(program, list(argv))


def refused(*argv: str, program: Program = PROGRAM) -> str:
    with pytest.raises(UserError) as caught:
        settings(*argv, program=program)
    assert "\n" not in str(caught.value)
    return user_message(caught.value)


@pytest.fixture
def trained(tmp_path):
    folder = tmp_path / "run"
    write_args(
        settings("--tx_dim", "128", "--sampler", "ddim", "--output_dir", str(folder), "--max_seconds", "5"), folder
    )
    return folder


# ---------------------------------------------------------------------------------------------------------- precedence


def test_defaults_of_dataclasses_then_of_the_program():
    s = settings()
    assert (s.config.network.tx_dim, s.config.optimizer.lr_warmup_steps, s.config.run.save_dir, s.explicit) == (
        512,
        500,
        "saved_tests",
        frozenset(),
    )


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_file_over_defaults_and_typed_flags_over_the_file(tmp_path, suffix, grouped):
    path = tmp_path / f"config{suffix}"
    flat = {"tx_dim": 64, "tx_depth": 2, "self_condition": True}
    path.write_text(json.dumps({"Network": flat} if grouped else flat))  # JSON is YAML
    s = settings("--config", str(path), "--tx_depth", "3")
    assert (s.config.network.tx_dim, s.config.network.tx_depth, s.config.network.self_condition) == (64, 3, True)
    assert s.explicit == {"tx_dim", "tx_depth", "self_condition", "config"}


def test_flags_of_config_files_only(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("texts: 5\n")
    assert settings("--config", str(path)).config.sampling.texts == 5


def test_config_arguments_are_files_or_pairs_and_the_last_takes_precedence(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("texts: 5\ntx_dim: 32\n")
    s = settings("--config", str(path), "--config", "texts=7,rate=0.25", "--tx_depth", "2")
    assert (s.config.sampling.texts, s.config.sampling.rate, s.config.network.tx_dim) == (7, 0.25, 32)
    assert {"texts", "rate", "tx_dim", "tx_depth"} <= s.explicit
    assert "no flag 'text'" in refused("--config", "text=3") and "expected NAME=VALUE" in refused(
        "--config", "texts=3,4"
    )
    assert "texts expects a whole number" in refused("--config", "texts=many")


def test_no_configuration_file():
    """Found by benchmarks/fuzz.py."""
    s = settings("--config", "None", "--config", "tx_dim=32")
    assert s.config.network.tx_dim == 32 and settings("--config", "none").config.run.config is None


def test_yaml_that_reads_1e_4_as_text_is_a_number(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("learning_rate: 1e-4\neta: null\nnum_train_steps: 1e3\n")
    s = settings("--config", str(path))
    assert (
        s.config.optimizer.learning_rate == 1e-4
        and s.config.loop.num_train_steps == 1000
        and isinstance(s.config.loop.num_train_steps, int)
    )


def test_all_four_sources(tmp_path, trained, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("tx_dim: 32\nnum_samples: 7\nsampler: dpmpp\n")
    s = settings("--config", str(path), "--resume_dir", str(trained), "--eval", "--num_samples", "9")
    assert (
        s.config.network.tx_dim,
        s.config.sampling.num_samples,
        s.config.sampling.sampler,
        s.config.network.tx_depth,
    ) == (128, 9, "ddim", 6)
    assert s.explicit == {"num_samples", "resume_dir", "eval", "config"}
    notes = capsys.readouterr().err
    assert "tx_dim of --config has no effect" in notes and "num_samples" not in notes


def test_untyped_defaults_never_override_what_was_trained_and_invocation_flags_never_come_from_it(trained):
    s = settings("--resume_dir", str(trained), "--resume_training")
    assert s.config.network.tx_dim == 128 and s.origins["tx_dim"] == "saved"
    assert (
        s.config.loop.max_seconds is None
        and s.config.run.output_dir is None
        and s.config.run.resume_training
        and not s.config.evaluation.eval
    )


def test_resume_dir_alone_reads_nothing(trained):
    assert settings("--resume_dir", str(trained)).config.network.tx_dim == 512


# ------------------------------------------------------------------------------------------------- evaluation, resume


def test_free_flags_may_differ_and_others_are_refused_with_both_values(trained):
    assert settings("--eval", "--resume_dir", str(trained), "--sampler", "ddpm").config.sampling.sampler == "ddpm"
    text = refused("--eval", "--resume_dir", str(trained), "--tx_dim", "256")
    assert "--tx_dim" in text and "256" in text and "128" in text
    assert settings("--eval", "--resume_dir", str(trained), "--tx_dim", "128").config.network.tx_dim == 128
    assert "--sampler" in refused("--resume_training", "--resume_dir", str(trained), "--sampler", "ddpm")
    assert (
        settings(
            "--resume_training", "--resume_dir", str(trained), "--train_batch_size", "9"
        ).config.loop.train_batch_size
        == 9
    )


def test_modes_need_a_run_folder_and_exclude_each_other(tmp_path, trained):
    assert "--resume_dir" in refused("--eval")
    assert "exclude" in refused("--eval", "--resume_training", "--resume_dir", str(trained))
    assert "no such folder" in refused("--eval", "--resume_dir", str(tmp_path / "absent"))
    assert "no args.json" in refused("--eval", "--resume_dir", str(tmp_path))


def test_a_run_of_an_older_release_is_refused_in_one_line(tmp_path):
    (tmp_path / "args.json").write_text(json.dumps({"schema_version": 1, "git_commit": "abc123", "tx_dim": 3}))
    assert "check out the commit abc123" in refused("--eval", "--resume_dir", str(tmp_path))
    assert "check out the commit abc123" in refused("--config", str(tmp_path / "args.json"))


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"tx_dim": "wide"}', '{"schema_version": 99}', "\udcff"])
def test_a_damaged_args_json_is_one_line(tmp_path, content):
    (tmp_path / "args.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert "args.json" in refused("--eval", "--resume_dir", str(tmp_path))


def test_args_json_of_the_reference_is_accepted(tmp_path):
    (tmp_path / "args.json").write_text(json.dumps(
        {"tx_dim": 768, "amp": False, "optimizer": "awamW", "eval": False, "resume_dir": None, "trainable_params": 1,
         "num_devices": 1}))  # fmt: skip
    s = settings("--eval", "--resume_dir", str(tmp_path))
    assert s.config.network.tx_dim == 768 and s.config.optimizer.optimizer == "adamw" and s.config.evaluation.eval
    assert s.checkpoint_args["trainable_params"] == 1


def test_args_json_is_a_flat_record_and_evaluation_never_overwrites_it(trained):
    data = json.loads((trained / "args.json").read_text())
    assert data["schema_version"] == 2 and data["tx_dim"] == 128 and data["seed"] == 42
    assert "torch" in data["package_versions"] and "git_commit" in data
    s = settings("--eval", "--resume_dir", str(trained), "--num_samples", "3")
    before = (trained / "args.json").read_bytes()
    write_args(s, trained, device_name="cpu")
    assert (trained / "args.json").read_bytes() == before
    again = settings("--config", str(trained / "args.json"))
    assert again.config.network.tx_dim == 128 and again.config.run.output_dir is None, (
        "another run's args.json is a configuration, too"
    )


# ------------------------------------------------------------------------------------------------------------ spelling


def test_only_published_flags_may_be_abbreviated():
    assert settings("--l2_normalize_latent").config.sampling.l2_normalize_latents
    assert settings("--tx_di", "3").config.network.tx_dim == 3
    assert "--tx_depth, --tx_dim" in refused("--tx_d", "3")
    assert "did you mean --num_samples" in refused("--num_sample", "3")


def test_a_new_flag_makes_no_old_abbreviation_ambiguous():
    # tx_new would make --tx_ ambiguous among three; only published flags may be abbreviated
    assert "--tx_new" not in refused("--tx_", "3")
    assert settings("--tx_di", "3").config.network.tx_dim == 3


def test_a_program_without_abbreviations_refuses_them():
    assert "unknown flag --tx_di" in refused("--tx_di", "3", program=replace(PROGRAM, abbreviates=False))


def test_an_exact_name_wins_over_longer_ones(trained):
    assert settings("--eval", "--resume_dir", str(trained)).config.evaluation.eval_test is False


@pytest.mark.parametrize(("typed", "stored"), [("adamW", "adamw"), ("LION", "lion"), ("awamW", "adamw")])
def test_letter_case_of_choices_is_ignored_and_the_tables_is_stored(typed, stored):
    assert settings("--optimizer", typed).config.optimizer.optimizer == stored
    assert settings("--sampler", "dpmPP").config.sampling.sampler == "DPMpp"


def test_ignored_flags_say_so_and_swallow_their_value(capsys):
    s = settings("--milestone", "12", "--amp", "--tx_dim", "3")
    err = capsys.readouterr().err
    assert (
        s.config.network.tx_dim == 3 and err.count("note:") == 2 and "--amp has no effect: use --mixed_precision" in err
    )


def test_booleans_can_be_switched_either_way():
    assert settings("--self_condition").config.network.self_condition and settings().config.network.cached
    assert not settings("--no_cached").config.network.cached and not settings("--cached=false").config.network.cached
    assert settings("--self_condition=true").config.network.self_condition


def test_equals_signs_negative_numbers_none_and_repeats():
    assert settings("--tx_dim=7").config.network.tx_dim == 7
    assert settings("--tx_new", "-3").config.network.tx_new == -3
    assert settings("--eta", "-1e-3").config.sampling.eta == -1e-3
    assert settings("--eta", "0.5", "--eta", "none").config.sampling.eta is None
    assert settings("--num_train_steps", "1e4").config.loop.num_train_steps == 10_000


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--smapler", "ddim"], "did you mean --sampler"),
        (["--tx-dim", "3"], "did you mean --tx_dim"),
        (["--sampler", "ddiim"], "did you mean ddim"),
        (["--tx_dim", "wide"], "whole number (channels)"),
        (["--tx_dim", "1.5"], "whole number"),
        (["--tx_dim"], "nothing follows"),
        (["--tx_dim", "--self_condition"], "nothing follows"),
        (["--tx_dim", "0"], "at least 1"),
        (["--adam_beta1", "1.5"], "at most 1"),
        (["--rate", "0"], "must be above 0 and at most 1, not 0.0"),
        (["--texts", "3"], "type --config texts=VALUE"),
        (["--learning_rate", "nan"], "finite"),
        (["--self_condition=maybe"], "true or false"),
        (["--self_condition", "true"], "no value follows --self_condition; type --self_condition to switch it on"),
        (
            ["--cached", "FALSE"],
            "unexpected argument 'FALSE': no value follows --cached; type --no_cached to switch it off",
        ),
        (["--output_dir", "my", "run"], "unexpected argument 'run'.* one with blanks is put in quotation marks"),
        (["\u2013tx_dim", "3"], "a flag begins with two hyphens, as in --tx_dim"),
        (["-tx_dim", "3"], "a flag begins with two hyphens, as in --tx_dim"),
        (["--output_dir", ""], "it is empty (is a variable of the shell not set?)"),
        (["--output_dir", "a\0b"], "holds a NUL character: remove it"),
        (["--output_dir", "caf\udce9"], "is not UTF-8 ('caf\\udce9'): rename"),
        (["--config", ""], "it is empty"),
        (["--config", "x" * 5000], "File name too long"),
        (["--config", "=" * 5000], "no flag ''"),
        ([" ", "--tx_dim", "3"], "backslash"),
        (["stray"], "unexpected argument"),
        (["--"], "unexpected argument"),
        (["--=3"], "unknown flag"),
        (["--config", "/absent.yaml"], "/absent.yaml"),
    ],
)
def test_bad_input_is_refused_in_one_line(argv, says):
    found = refused(*argv)
    assert says in found or re.search(says, found), found
    assert found.isprintable() and len(found) < 1000


NUMBERS = ("nan", "inf", "\uff11", "-inf", "Infinity", "1e400", "-1e400", "0x10", "1_", "", " ", "1;5", "true",
           "\u0663", "1" * 5000, "-" + "1" * 400, "1\0", "none", "\u22121", "1e999999999", "1\udcff")  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
@pytest.mark.parametrize("name", ["tx_dim", "rate", "learning_rate", "train_batch_size", "max_seq_len", "texts"])
def test_what_is_no_finite_number_in_range_is_refused(name, text, tmp_path):
    """The same for a typed flag, a pair of --config, and a file; max_seq_len has no bounds of its own."""
    typed = [f"--{name}={text}"] if name != "texts" else []
    for argv in filter(None, (typed, ["--config", f"{name}={text}"])):
        assert re.search(f"{name} (expects|must be)|--config (holds|is not)", refused(*argv))
    path = tmp_path / "c.json"
    path.write_text(json.dumps({name: text}), errors="surrogatepass")
    assert re.search("expects|must be", refused("--config", str(path)))
    for value in ("NaN", "Infinity", "-Infinity", "1e400", "[1]", "{}", "true", "null", "9" * 5000):
        path.write_text(f'{{"{name}": {value}}}')
        assert re.search("expects|must be|not valid JSON", refused("--config", str(path)))


@pytest.mark.parametrize("text, value", [(" 3 ", 3), ("+3", 3), ("1e3", 1000), ("1_000", 1000), ("007", 7)])
def test_spellings_of_whole_numbers(text, value):
    assert settings(f"--tx_dim={text}").config.network.tx_dim == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tx_dmi: 3", "did you mean tx_dim"),
        ("netwrok: {tx_dim: 3}", "did you mean network"),
        ("tx_dim: [3]", "tx_dim expects a whole number"),
        ("tx_dim: true", "whole number"),
        ("- 3", "table of names"),
        ("a: [", "not valid YAML"),
        ("config: other.yaml", "no flag 'config'"),
        ("!!python/object/apply:os.system ['false']", "not valid YAML"),
        ("tx_dim: 3\ntx_dim: 4", "tx_dim stands in it twice"),
        ("network: {tx_dim: 3}\ntx_dim: 4", "tx_dim stands in it twice"),
        ("tx_dim: &a [*a]", "not valid YAML"),
        ("a: &a [1,1,1]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\ntx_dim: *c", "no flag 'a'"),
        ("{" * 5000, "not valid YAML"),
        ("output_dir: 2026-01-01", "output_dir expects a text"),
        ("output_dir: !!binary aGk=", "output_dir expects a text"),
        ("? [1, 2]\n: 3", "not valid YAML|table of names"),
        ('output_dir: "a\\0b"', "NUL"),
        ("\x00", "not valid YAML"),
        ("--- 1\n--- 2", "not valid YAML"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, text, says):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    found = refused("--config", str(path))
    assert found.isprintable() and len(found) < 1000
    assert re.search(says, found) and str(path) in found


# ------------------------------------------------------------------------------------------------------ rules, records


def test_rules_fill_in_and_refuse():
    def eta_selects_ddim(s):
        if "eta" in s.explicit and "sampler" not in s.explicit:
            s.set("sampler", "DDIM")

    def no_seven(s):
        if s.config.network.tx_dim == 7:
            raise UserError("--tx_dim 7 is unlucky: type 8")

    program = replace(PROGRAM, rules=(eta_selects_ddim, no_seven))
    s = settings("--eta", "0.5", program=program)
    assert s.config.sampling.sampler == "ddim" and "sampler" not in s.explicit and s.origins["sampler"] == "rule"
    assert settings("--eta", "0.5", "--sampler", "ddpm", program=program).config.sampling.sampler == "ddpm"
    assert "unlucky" in refused("--tx_dim", "7", program=program)


def test_the_config_holds_option_groups_and_describe_lists_them():
    s = settings("--tx_dim", "32")
    assert s.config.network == Net(tx_dim=32) and json.loads(json.dumps(s.as_dict()))["tx_dim"] == 32
    text = s.describe()
    assert "network" in text and "32  (flag)" in text and text.count("max_seq_len") == 1


def test_a_misspelt_flag_is_an_error_of_types():
    """Values are attributes of dataclasses, so mypy finds a misspelt name; Settings adds no attributes at run time."""
    assert not hasattr(Settings, "__getattr__")
    with pytest.raises(AttributeError):
        _ = settings().config.network.tx_width  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="tx_width"):
        settings().set("tx_width", 3)


def test_a_flag_lies_in_one_group_of_a_program():
    @dataclass
    class Other:
        tx_dim: int = flag(3, "another width")

    @dataclass
    class Twice(Config):
        other: Other = group(Other, "other")

    with pytest.raises(AssertionError, match="tx_dim lies in two groups"):
        Program("p", "d", Twice)


def test_a_default_that_is_not_valid_is_found_when_the_program_is_made():
    @dataclass
    class Wrong(Config):
        network: Net = group(Net, "network", tx_dim=0)

    with pytest.raises(AssertionError, match="default of --tx_dim"):
        Program("p", "d", Wrong)


# ---------------------------------------------------------------------------------------------------------------- help


def test_help_shows_every_flag_with_default_and_unit(capsys):
    with pytest.raises(SystemExit) as stopped:
        settings("--tx_dim", "3", "--help")
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and text.strip() == help_text(PROGRAM).strip()
    for name, found in PROGRAM.flags.items():
        assert len(re.findall(rf"^  {'' if found.config_only else '--'}{name}\b", text, re.M)) == 1, name
        assert found.help.split()[0] in text
    assert (
        "[default: 512 channels; at least 1]" in text and "unit: factor" in text and "accepted without effect" in text
    )


def test_parsing_imports_no_torch_and_answers_soon():
    code = "import sys, utils.cli.parse, utils.options, utils.errors; sys.exit('torch' in sys.modules)"
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert time.monotonic() - began < 2
