"""A saved pipeline is complete: in another process and folder, offline and without its run, it gives the same texts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evaluation.report.__main__ import main as report
from pipelines import sample
from pipelines.text_diffusion import TextDiffusionPipeline
from tests.pipelines.pretrained.conftest import KINDS, call_of
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
FRESH = """
import json, sys
from pathlib import Path
from pipelines.text_diffusion import TextDiffusionPipeline
from tests.pipelines.pretrained.conftest import call_of
for folder in sorted(Path(sys.argv[1]).iterdir()):
    pipeline = TextDiffusionPipeline.from_pretrained(folder, device="cpu")
    output = pipeline(**call_of(pipeline))
    print(json.dumps([folder.name, output.texts, output.latents.x0.double().sum().item().hex()]))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_texts_and_latents_are_the_same_bit_for_bit(loaded, saved, kind):
    before, after = loaded(kind), TextDiffusionPipeline.from_pretrained(saved(kind), device="cpu")
    expected, found = before(**call_of(before)), after(**call_of(after))
    assert found.texts == expected.texts and len(found) > 1
    assert torch.equal(found.latents.x0, expected.latents.x0)
    assert torch.equal(found.latents.mask, expected.latents.mask)
    assert (after.sampler, after.decoding, after.class_names) == (before.sampler, before.decoding, before.class_names)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_holds_no_pickle_and_no_place_of_this_machine(saved, runs, kind):
    folder = saved(kind)
    for path in (p for p in folder.rglob("*") if p.is_file()):
        assert path.suffix in (".safetensors", ".json", ".txt", ".md"), path
        if path.suffix != ".safetensors":
            text = path.read_text()
            assert str(runs(kind).parent) not in text and "/tmp" not in text and str(ROOT) not in text, path
            if path.suffix == ".json" and path.parent.name != "tokenizer" and "tokenizer" not in path.name:
                assert not re.search(r'": "(/|~|[A-Z]:\\\\)', text), path
    assert (folder / "README.md").is_file()


def test_a_fresh_process_elsewhere_needs_neither_the_runs_nor_the_network(loaded, saved, runs, chain, tmp_path):
    expected = {}
    for kind in KINDS:
        shutil.copytree(saved(kind), tmp_path / "copies" / kind)
        output = loaded(kind)(**call_of(loaded(kind)))
        expected[kind] = [output.texts, output.latents.x0.double().sum().item().hex()]
    hidden = [(place, place.with_name(f"{place.name}.hidden")) for place in (chain, runs("classes").parent)]
    for place, elsewhere in hidden:
        place.rename(elsewhere)
    try:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "none")}
        done = subprocess.run(
            [sys.executable, "-c", FRESH, str(tmp_path / "copies")],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    finally:
        for place, elsewhere in hidden:
            elsewhere.rename(place)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}
    assert found == expected


def test_a_saved_folder_can_be_saved_again(saved, tmp_path):
    pipeline = TextDiffusionPipeline.from_pretrained(saved("latents"), device="cpu")
    pipeline.save_pretrained(tmp_path / "again")
    pipeline.save_pretrained(tmp_path / "again")  # an earlier saved pipeline is replaced
    names = {p.relative_to(saved("latents")): p.read_bytes() for p in saved("latents").rglob("*") if p.is_file()}
    assert names == {
        p.relative_to(tmp_path / "again"): p.read_bytes() for p in (tmp_path / "again").rglob("*") if p.is_file()
    }
    assert [p.name for p in tmp_path.iterdir()] == ["again"]


def test_the_flags_of_a_saved_folder_give_way_to_those_of_a_call(saved):
    def load(**flags):
        return TextDiffusionPipeline.from_pretrained(saved("latents"), device="cpu", **flags)

    assert (load().sampler, load().generator.steps) == ("ddim", 3)
    assert load(sampler="dpmpp").sampler == "dpmpp"  # its eta is of ddim
    fast = load(preset="fast")
    assert (fast.sampler, fast.generator.steps, fast.decoding) == ("dpmpp_sde", 25, "greedy")
    assert load(argv=["--sampling_timesteps", "5"]).generator.steps == 5


def test_the_programs_take_a_saved_folder(programs, saved, tmp_path, capsys):
    shutil.copytree(saved("classes"), tmp_path / "model")
    flags = f"--run {tmp_path / 'model'} --device cpu --num_samples 2 --decoding greedy --output_dir {tmp_path / 'out'}"
    assert sample.main(flags.split()) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert programs.student(tmp_path / "model", tmp_path / "student", f"--distill_steps 1 {programs.data}") == 0
    assert len(TextDiffusionPipeline.from_pretrained(tmp_path / "student", device="cpu")(1)) == 1
    flags = f"--eval {programs.data} --num_samples 4 --scorer {programs.scorer} --output_dir {tmp_path / 'eval'}"
    flags += " --class_id prior"
    assert programs.again("diffusion", tmp_path / "model", flags) == 0
    assert not list((tmp_path / "model").glob("evaluation*"))


def test_a_changed_sampler_is_saved(loaded, tmp_path):
    pipeline = TextDiffusionPipeline.from_pretrained(loaded("states").run.folder, device="cpu")
    pipeline.sampler = "heun"
    pipeline.save_pretrained(tmp_path / "model")
    assert TextDiffusionPipeline.from_pretrained(tmp_path / "model", device="cpu").sampler == "heun"


# ------------------------------------------------------------------------------------------------- where to save


def test_saving_replaces_nothing_else(loaded, saved, tmp_path):
    pipeline = loaded("latents")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    for folder in (tmp_path / "mine", pipeline.run.folder):
        with pytest.raises(UserError, match="holds other files"):
            pipeline.save_pretrained(folder)
    assert (tmp_path / "mine" / "config.json").read_text() == "{}"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        pipeline.save_pretrained(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        pipeline.save_pretrained("/proc/model")
    for folder in ("", None, 5):
        with pytest.raises(UserError, match="folder is .*: give the path"):
            pipeline.save_pretrained(folder)
    (tmp_path / "empty").mkdir()
    pipeline.save_pretrained(tmp_path / "empty")
    assert (tmp_path / "empty" / "model_index.json").is_file()
    with pytest.raises(UserError, match="license is 'The MIT'"):
        pipeline.save_pretrained(tmp_path / "x", license="The MIT")


# --------------------------------------------------------------------------------------------- folders that differ


def edited_index(folder: Path, **changes: object) -> None:
    """Change entries of the index, with a checksum that fits."""
    from pipelines.pretrained import folder as layout

    index = json.loads((folder / "model_index.json").read_text())
    index = {**{k: v for k, v in index.items() if k != "checksum"}, **changes}
    text = layout._serialized({**index, "checksum": layout._checksum(index)})
    (folder / "model_index.json").write_text(text)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


WRONG = {
    "weights": (lambda f: flip(f / "denoiser/model.safetensors"), "denoiser/model.safetensors was changed since"),
    "language model": (lambda f: flip(f / "language_model/model.safetensors"), "language_model/model.safet.* changed"),
    "a setting": (lambda f: flip(f / "args.json"), "args.json was changed since it was saved"),
    "the index": (lambda f: flip(f / "model_index.json"), "model_index.json (was changed|is no JSON)|is not a saved"),
    "a missing file": (lambda f: (f / "autoencoder/args.json").unlink(), "autoencoder/args.json is missing"),
    "an added file": (lambda f: (f / "language_model/x.bin").write_text("x"), "language_model/x.bin was added since"),
    "an empty index": (lambda f: (f / "model_index.json").write_text(""), "model_index.json is no JSON"),
    "another class": (lambda f: edited_index(f, _class_name="StableDiffusionPipeline"), "is of a StableDiffusionPipe"),
    "a newer release": (lambda f: edited_index(f, format=2), "newer release .format 2, this one reads 1.: update"),
    "a path outside": (lambda f: edited_index(f, sha256={"../x.json": "0" * 64}), "lists ../x.json, which no saved"),
    "a pickle": (lambda f: edited_index(f, sha256={"weights.bin": "0" * 64}), "lists weights.bin, which no saved"),
    "another flag": (lambda f: edited_index(f, flags={"enc_dec_model": "x/y"}), "'enc_dec_model' is no sampling flag"),
    "another classifier": (lambda f: edited_index(f, flags={"latent_classifier": "/x"}), "classifier lies outside"),
    "flags of another type": (lambda f: edited_index(f, flags={"sampler": ["ddim"]}), "'sampler' is no sampling flag"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_differs_from_what_was_saved_is_refused(saved, tmp_path, case):
    damage, says = WRONG[case]
    shutil.copytree(saved("latents"), tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(UserError, match=says) as caught:
        TextDiffusionPipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()


def test_a_model_outside_the_folder_is_not_read(saved, tmp_path):
    """Even where the checksums fit, since whoever changes a file can also write its checksum."""
    from utils.local_models import file_sha256

    shutil.copytree(saved("latents"), tmp_path / "model")
    args = json.loads((tmp_path / "model/args.json").read_text())
    (tmp_path / "model/args.json").write_text(json.dumps({**args, "enc_dec_model_relative": "../../evil"}))
    index = json.loads((tmp_path / "model/model_index.json").read_text())
    hashes = {**index["sha256"], "args.json": file_sha256(tmp_path / "model/args.json")}
    edited_index(tmp_path / "model", sha256=hashes)
    with pytest.raises(UserError, match="enc_dec_model_relative of args.json lies outside"):
        TextDiffusionPipeline.from_pretrained(tmp_path / "model", device="cpu")


def test_the_card_and_files_of_a_repository_may_change(saved, tmp_path):
    shutil.copytree(saved("latents"), tmp_path / "model")
    (tmp_path / "model/README.md").write_text("my card")
    (tmp_path / "model/.gitattributes").write_text("*.safetensors filter=lfs")
    (tmp_path / "model/LICENSE").write_text("MIT")
    (tmp_path / "model/.cache/huggingface").mkdir(parents=True)
    (tmp_path / "model/.cache/huggingface/x.metadata").write_text("")
    assert len(TextDiffusionPipeline.from_pretrained(tmp_path / "model", device="cpu")(1)) == 1


def test_a_folder_that_was_used_and_looked_at_still_loads(programs, saved, tmp_path, capsys):
    """Samples, evaluations and pages are written into it unless a flag names another place."""
    model = tmp_path / "model"
    shutil.copytree(saved("latents"), model)
    for name in (".DS_Store", "denoiser/._state.json", "Thumbs.db", ".ipynb_checkpoints/README.md"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("x")
    for _ in range(2):
        assert sample.main(["--run", str(model), "--device", "cpu", "-n", "2", "--decoding", "greedy"]) == 0
        flags = f"--eval {programs.data} --num_samples 4 --scorer {programs.scorer} --decoding greedy"
        assert programs.again("diffusion", model, flags) == 0
    assert (model / "samples").is_dir() and (model / "evaluation").is_dir()
    assert report([str(model)]) == 0 and (model / "report.html").is_file()
    pipeline = TextDiffusionPipeline.from_pretrained(model, device="cpu")
    (model / ".git").mkdir()
    (model / ".git/HEAD").write_text("ref")
    (model / "LICENSE").write_text("mine")
    pipeline.save_pretrained(model)
    assert (model / ".git/HEAD").read_text() == "ref" and (model / "LICENSE").read_text() == "mine"
    assert (model / "samples").is_dir() and [path.name for path in tmp_path.iterdir()] == ["model"]
    assert len(TextDiffusionPipeline.from_pretrained(model, device="cpu")(1)) == 1
    (model / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes.txt was not saved with the pipeline.*: move it"):
        pipeline.save_pretrained(model)
    (model / "notes.txt").rename(tmp_path / "notes.txt")
    (model / "model_index.json").write_text("{")  # a damaged one is replaced, and what is not its own stays
    pipeline.save_pretrained(model)
    assert (model / ".git/HEAD").read_text() == "ref" and (model / "samples").is_dir()
    assert len(TextDiffusionPipeline.from_pretrained(model, device="cpu")(1)) == 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p, "is not a run folder: it holds no args.json"),
        (lambda p: p / "none", "there is no such folder"),
        (lambda p: "owner/name", "no such folder, and as a repository of the model hub it cannot be read"),
        (lambda p: "owner/na me", "there is no such folder"),
        (lambda p: 5, "5 is not a run folder"),
    ],
    ids=["empty", "missing", "repository", "no id", "number"],
)
def test_what_is_no_model_is_one_line(tmp_path, make, says):
    with pytest.raises(UserError, match=says) as caught:
        TextDiffusionPipeline.from_pretrained(make(tmp_path), device="cpu")
    assert "\n" not in str(caught.value)
