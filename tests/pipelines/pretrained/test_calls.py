"""pipe(...): every argument, callbacks, samplers by name, and what is said where an argument cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.sampling.outputs import TextPipelineOutput
from pipelines.text_diffusion import TextDiffusionPipeline
from tests.pipelines.pretrained.conftest import SOURCES
from utils.errors import UserError
from utils.records import Latents

GREEDY = {"decoding": "greedy", "generator": 3}


@pytest.fixture(scope="module")
def latents(runs) -> TextDiffusionPipeline:
    return TextDiffusionPipeline.from_pretrained(runs("latents"), device="cpu", sampling_timesteps=4)


@pytest.fixture(scope="module")
def classes(runs) -> TextDiffusionPipeline:
    return TextDiffusionPipeline.from_pretrained(runs("classes"), device="cpu")


@pytest.fixture(scope="module")
def pairs(runs) -> TextDiffusionPipeline:
    return TextDiffusionPipeline.from_pretrained(runs("pairs"), device="cpu")


# ------------------------------------------------------------------------------------------------------------- output


def test_the_output_holds_texts_and_their_latents(latents):
    output = latents(num_samples=3, **GREEDY)
    assert isinstance(output, TextPipelineOutput) and len(output.texts) == 3
    assert output.latents.x0.shape == (3, latents.generator.space.length, latents.generator.space.dim)
    assert output.latents.mask.shape == (3, latents.generator.space.length)
    assert latents.decode(output.latents, "greedy") == output.texts


def test_the_output_reads_as_a_list_of_texts(latents):
    output = latents(3, seed=3, decoding="greedy")
    assert output == latents.sample(3, seed=3, decoding="greedy") == latents(num_samples=3, **GREEDY)
    assert (output[0], output[-1], output[:2]) == (output.texts[0], output.texts[2], output.texts[:2])
    assert list(output) == output.texts and output.texts[1] in output and "\n".join(output).count("\n") == 2
    assert output != ["another"] and output != 3
    assert len(latents.variations(output[:1], 2, decoding="greedy")[0]) == 2
    assert output.texts[0] in repr(output) and "tensor" not in repr(output)
    texts, rows = latents(3, **GREEDY).to_tuple()
    assert texts == output.texts and torch.equal(rows.x0, output.latents.x0)


def test_latents_alone(latents, pairs):
    for pipe, call in ((latents, {"num_samples": 3}), (pairs, {"source": SOURCES, "num_samples": 2})):
        expected, found = pipe(**call, **GREEDY), pipe(**call, generator=3, output_type="latent")
        assert found.texts == [] and len(found) == 0
        assert torch.equal(found.latents.x0, expected.latents.x0)


def test_more_texts_begin_with_those_of_fewer(latents):
    assert latents(20, **GREEDY)[:3] == latents(3, **GREEDY)


def test_latents_of_empty_texts_decode_to_empty_texts(latents, monkeypatch):
    """Empty texts are replaced by further ones, each with its own latents; those that stay empty have latents, too."""
    decode = latents.generator.decode

    def some_empty(generator, rows, *rest):
        return [text if x0.sum() > cut else "" for text, x0 in zip(decode(rows, *rest), rows.x0, strict=True)]

    whole = latents(16, **GREEDY)
    for share in (0.5, 1.1):
        cut = whole.latents.x0.sum((1, 2)).quantile(min(share, 1)).item() + (10.0 if share > 1 else 0)
        monkeypatch.setattr(type(latents.generator), "decode", some_empty)
        output = latents(5, **GREEDY)
        monkeypatch.undo()
        assert len(output.texts) == len(output.latents) == 5
        assert [bool(text) for text in output.texts] == [x0.sum().item() > cut for x0 in output.latents.x0]


# --------------------------------------------------------------------------------------------------------- arguments


def test_generator_is_a_seed_or_draws_one(latents):
    assert latents(2, generator=5, decoding="greedy") == latents(2, seed=5, decoding="greedy")
    first, second = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    a, b = latents(4, generator=first, output_type="latent"), latents(4, generator=first, output_type="latent")
    assert torch.equal(a.latents.x0, latents(4, generator=second, output_type="latent").latents.x0)
    assert not torch.equal(a.latents.x0, b.latents.x0)  # the generator has moved on
    assert latents(2, decoding="greedy") == latents(2, generator=42, decoding="greedy")
    assert latents.sample(1, seed=torch.Generator().manual_seed(1)) and latents(np.int64(1), generator=np.int32(3))


def test_number_of_steps(latents, runs):
    seven = TextDiffusionPipeline.from_pretrained(runs("latents"), device="cpu", sampling_timesteps=7)
    assert latents(3, 7, **GREEDY) == latents(3, num_inference_steps=7, **GREEDY) == seven(3, **GREEDY)
    assert latents.generator.steps == 4  # of the call only


def test_classes_and_guidance(classes, runs):
    guided = TextDiffusionPipeline.from_pretrained(runs("classes"), device="cpu", cls_free_guidance=3)
    call = {"num_samples": 2, "output_type": "latent", "generator": 3}
    strong = classes(**call, class_id=1, guidance_scale=3).latents.x0
    assert torch.equal(strong, guided(**call, class_id=1).latents.x0)
    assert torch.equal(strong, classes(**call, class_id=1, guidance=3).latents.x0)
    plain = classes(**call, class_id=[1, 1]).latents.x0
    assert not torch.equal(strong, plain)
    assert torch.equal(plain, classes(**call, class_id=classes.class_names[1]).latents.x0)


def test_sources(pairs):
    output = pairs(source=SOURCES, num_samples=3, **GREEDY)
    rows = pairs.candidates(SOURCES, 3, seed=3, decoding="greedy")
    assert output.texts == [text for row in rows for text in row] and len(output.latents) == 6
    assert pairs(source=SOURCES[0], **GREEDY) == pairs.candidates(SOURCES[:1], 1, seed=3, decoding="greedy")[0]
    plain, guided = (
        pairs(source=SOURCES, guidance_scale=g, generator=3, output_type="latent").latents.x0 for g in (1, 4)
    )
    assert not torch.equal(plain, guided)


def test_noise_of_texts_leads_back_to_them(runs):
    pipe = TextDiffusionPipeline.from_pretrained(runs("classes"), device="cpu", sampling_timesteps=50, sampler="ddim")
    texts = ["Ben ran to the garden one warm night.", "Later she gave it to her mother."]
    clean, noise = pipe.encode(texts), pipe.invert(texts)
    back = pipe(latents=noise, output_type="latent").latents
    other = pipe(num_samples=2, output_type="latent").latents
    assert (back.x0 - clean.x0).square().mean() < 0.01 * (other.x0 - clean.x0).square().mean()
    assert len(pipe(latents=noise, decoding="greedy")) == 2


def test_every_space_takes_the_same_calls(loaded):
    for kind in ("states", "embeddings", "packed", "context"):
        pipe = loaded(kind)
        call = {"source": SOURCES} if pipe.sources is not None else {"num_samples": 2}
        steps: list[int] = []
        output = pipe(**call, generator=1, callback_on_step_end=lambda p, i, t, kw, seen=steps: seen.append(i))
        assert len(output.texts) == len(output.latents) == 2 and steps
        assert output == pipe(**call, generator=1)


WRONG = {
    "a negative number": ({"num_samples": -1}, "num_samples is -1: give 1 or more"),
    "no number": ({"num_samples": "4"}, "num_samples is '4': give a whole number"),
    "no steps": ({"num_inference_steps": 0}, "num_inference_steps is 0: give 1 or more"),
    "too many steps": ({"num_inference_steps": 10**9}, "num_inference_steps is 1000000000: give 1 or more, and at mo"),
    "a scale without a class": ({"guidance_scale": 2}, "guidance_scale 2 needs a class: give class_id too, or leave"),
    "no scale": ({"guidance_scale": "x"}, "guidance_scale is 'x': give a finite number"),
    "two scales": ({"guidance_scale": 1, "guidance": 1}, "guidance_scale and guidance mean the same: give one"),
    "a class": ({"class_id": 1}, "without classes"),
    "a source": ({"source": "a text"}, "trained without sources"),
    "a float as seed": ({"generator": 1.5}, "generator is 1.5: give a whole number"),
    "generators": ({"generator": [torch.Generator()]}, "generator is a list: give one torch.Generator"),
    "two seeds": ({"generator": 1, "seed": 1}, "generator and seed mean the same: give one"),
    "another output": ({"output_type": "pil"}, "output_type is 'pil': give one of text, latent"),
    "another decoding": ({"decoding": "best"}, "greedy"),
    "no callback": ({"callback_on_step_end": 5}, "callback_on_step_end is 5: give a function of .pipeline, step"),
    "another tensor": (
        {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["latent"]},
        "callback_on_step_end_tensor_inputs has 'latent': give some of latents, pred_original_sample, mask",
    ),
    "a tensor as latents": ({"latents": torch.zeros(1, 4, 64)}, r"latents are tensor.*: give what invert returns"),
    "latents of another shape": (
        {"latents": Latents(torch.zeros(1, 2, 2), torch.ones(1, 2, dtype=torch.bool))},
        r"latents are \(1, 2, 2\): give what invert returns, of shape \(n, 4, 64\)",
    ),
    "another number of latents": (
        {"latents": Latents(torch.zeros(1, 4, 64), torch.ones(1, 4, dtype=torch.bool)), "num_samples": 2},
        "num_samples is 2, and latents are of 1 texts",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_argument_that_cannot_be_used_is_named_in_one_line(latents, case):
    arguments, says = WRONG[case]
    with pytest.raises(UserError, match=says) as caught:
        latents(**arguments)
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)


def test_arguments_that_a_run_does_not_allow(pairs, classes, loaded):
    with pytest.raises(UserError, match="latents and source cannot be combined"):
        pairs(source="a text", latents=Latents(torch.zeros(1, 4, 64), torch.ones(1, 4, dtype=torch.bool)))
    with pytest.raises(UserError, match="guidance_scale 2 needs predictions without the source, which is packed"):
        loaded("packed")(source=SOURCES, guidance_scale=2)
    with pytest.raises(UserError, match="num_inference_steps: this run is a student that was trained for 2 steps"):
        loaded("student")(1, num_inference_steps=5)
    assert len(loaded("student")(1, num_inference_steps=2, decoding="greedy")) == 1
    with pytest.raises(UserError, match="2 classes for 3 texts"):
        classes(3, class_id=[0, 1])
    with pytest.raises(UserError, match="DDIM inversion fails for a distilled student"):
        loaded("student").invert(["a text"])
    with pytest.raises(TypeError, match="num_sample"):
        classes(num_sample=3)


# ----------------------------------------------------------------------------------------------------------- sampler


def test_samplers_are_swapped_by_name(runs):
    pipe = TextDiffusionPipeline.from_pretrained(runs("latents"), device="cpu", sampling_timesteps=3)
    assert pipe.sampler == "ddpm"
    for name, given in (("dpmpp", "dpmpp"), ("ddim", "DDIMScheduler"), ("heun", "HeunDiscreteScheduler")):
        pipe.sampler = given
        fresh = TextDiffusionPipeline.from_pretrained(runs("latents"), device="cpu", sampling_timesteps=3, sampler=name)
        assert pipe.sampler == name and pipe(2, **GREEDY) == fresh(2, **GREEDY)
        assert torch.equal(
            pipe(2, generator=1, num_inference_steps=5, output_type="latent").latents.x0,
            fresh(2, generator=1, num_inference_steps=5, output_type="latent").latents.x0,
        )
    for wrong in ("dpmp", "EulerDiscreteScheduler", None, 3):
        with pytest.raises(UserError, match="sampler is .*: give one of ddpm, ddim, dpmpp, dpmpp_sde, heun"):
            pipe.sampler = wrong
    assert pipe.sampler == "heun"


def test_a_student_keeps_its_sampler(loaded):
    with pytest.raises(UserError, match="this run is a student that was trained for 2 steps only"):
        loaded("student").sampler = "dpmpp"
    assert loaded("student").sampler == "ddim"


def test_a_pipeline_moves_to_a_device(latents):
    before = latents(2, **GREEDY)
    assert latents.to("cpu") is latents and latents.device == torch.device("cpu")
    assert latents(2, **GREEDY) == before
    with pytest.raises(UserError, match="--device must be one of|device"):
        latents.to("nowhere")


def test_kernels_are_those_of_the_flags(runs):
    def load(**flags):
        TextDiffusionPipeline.from_pretrained(runs("latents"), device="cpu", **flags)
        return torch.backends.cuda.flash_sdp_enabled(), torch.get_float32_matmul_precision()

    try:
        assert load(attention="plain", tf32=True) == (False, "high")
        assert load() == (False, "high")  # another run leaves what was chosen for the process
    finally:
        assert load(attention="auto", tf32=False) == (True, "highest")


# ---------------------------------------------------------------------------------------------------------- callbacks


def test_a_callback_sees_every_step(latents):
    seen = []

    def callback(pipe, step, timestep, callback_kwargs):
        assert pipe is latents and set(callback_kwargs) == {"latents", "pred_original_sample", "mask"}
        seen.append((step, timestep, *(tuple(x.shape) for x in callback_kwargs.values())))
        return callback_kwargs

    names = ["latents", "pred_original_sample", "mask"]
    output = latents(
        3, **GREEDY, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names, num_inference_steps=5
    )
    assert [step for step, *_ in seen] == [0, 1, 2, 3, 4]
    assert [t for _, t, *_ in seen] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert {tuple(shapes) for _, _, *shapes in seen} == {((3, 4, 64), (3, 4, 64), (3, 4))}
    assert output == latents(3, **GREEDY, num_inference_steps=5)
    assert not latents.interrupt


def test_a_callback_may_change_the_latents(latents):
    target = latents(3, generator=99, output_type="latent").latents.x0

    def callback(pipe, step, timestep, callback_kwargs):
        return {"latents": target if step == 3 else callback_kwargs["latents"]}

    output = latents(3, **GREEDY, callback_on_step_end=callback)
    assert torch.equal(output.latents.x0, target)
    assert output == latents.decode(Latents(target, output.latents.mask), "greedy")


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (5, "callback_on_step_end returned 5: return its callback_kwargs"),
        ({"latents": None}, "returned latents None: return a tensor of shape"),
        ({"latents": torch.zeros(1)}, r"returned latents \(1,\): return a tensor of shape \(2, 4, 64\)"),
    ],
    ids=["number", "none", "shape"],
)
def test_what_a_callback_may_not_return(latents, returned, says):
    with pytest.raises(UserError, match=says):
        latents(2, **GREEDY, callback_on_step_end=lambda *_: returned)


def test_a_callback_may_stop_the_call(latents, pairs):
    estimates = []

    def callback(pipe, step, timestep, callback_kwargs):
        estimates.append(callback_kwargs["pred_original_sample"])
        pipe._interrupt = step == 1
        return callback_kwargs

    given = {
        "callback_on_step_end": callback,
        "callback_on_step_end_tensor_inputs": ["latents", "pred_original_sample"],
    }
    output = latents(3, **GREEDY, **given)
    assert latents.interrupt and len(estimates) == 2
    assert torch.equal(output.latents.x0, estimates[1]) and len(output) == 3
    assert len(latents(3, **GREEDY)) == 3 and not latents.interrupt  # the next call runs to its end
    many = latents(20, **GREEDY, **given)  # more than a batch of eight
    assert len(many.texts) == len(many.latents) == 8
    estimates.clear()
    rows = pairs(source=SOURCES, num_samples=5, **GREEDY, **given)  # a batch for each source
    assert len(rows.texts) == len(rows.latents) == 5
    assert len(latents(3, generator=1, output_type="latent", **given).latents) == 3


def test_an_error_of_a_callback_is_raised(latents):
    def callback(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        latents(2, **GREEDY, callback_on_step_end=callback)


def test_a_callback_sees_an_absorbing_state_where_it_is(loaded):
    """With an absorbing state the sampler works in shifted coordinates; latents are in those of the space."""
    pipe, seen = loaded("packed"), []

    def callback(pipe, step, timestep, callback_kwargs):
        seen.append(callback_kwargs["pred_original_sample"])
        pipe._interrupt = step == 1
        return None

    stopped = pipe(source=SOURCES, generator=1, output_type="latent", callback_on_step_end=callback,
                   callback_on_step_end_tensor_inputs=["pred_original_sample"])  # fmt: skip
    torch.testing.assert_close(stopped.latents.x0, seen[-1])
    whole = pipe(source=SOURCES, generator=1)
    assert pipe.decode(whole.latents, "greedy") == whole.texts
