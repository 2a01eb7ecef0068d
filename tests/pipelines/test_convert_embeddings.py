"""Conversion of runs of DiffuSeq, of DiffuSeq-v2 and of minimal text diffusion: tiny runs in their format.

Their network is written here a second time, after their papers and code, and the converted run computes the same.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from latent_models.tokenizers.training import train_tokenizer
from pipelines.convert_reference import main
from pipelines.text_diffusion import TextDiffusionPipeline
from utils import checkpoints
from utils.cli.args_io import read_args

LENGTH, TIMESTEPS, HIDDEN, TIME = 24, 40, 64, 32
OF_DIFFUSEQ = dict(
    lr=1e-4, batch_size=2048, microbatch=64, learning_steps=50000, ema_rate="0.9999", schedule_sampler="lossaware",
    diffusion_steps=TIMESTEPS, noise_schedule="sqrt", vocab="bert", config_name="bert-base-uncased", notes="test_",
    dataset="qqp", seq_len=LENGTH, hidden_t_dim=TIME, hidden_dim=16, dropout=0.1, seed=102, gradient_clipping=-1,
    weight_decay=0.0, predict_xstart=True, rescale_timesteps=True, use_plm_init="no",
)  # fmt: skip
OF_V2 = OF_DIFFUSEQ | dict(learned_mean_embed=True, denoise=True, denoise_rate=0.5, reg_rate=0.01)
OF_MINIMAL = dict(
    lr=1e-4, batch_size=64, microbatch=-1, lr_anneal_steps=25001, ema_rate="0.9999", schedule_sampler="uniform",
    diffusion_steps=TIMESTEPS, noise_schedule="sqrt", dataset="simple", sequence_len=LENGTH, num_channels=TIME,
    in_channel=16, dropout=0.1, seed=10708, predict_xstart=True, rescale_timesteps=True, gradient_clipping=-1,
    use_pretrained_embeddings=False, logits_mode=1,
)  # fmt: skip


class Published(nn.Module):
    """The network of these systems, under its names. Shapes: B texts, L positions, e channels of an embedding."""

    def __init__(self, vocabulary: int, width: int, *, absorbing: bool = False) -> None:
        super().__init__()
        config = BertConfig(
            hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=1, intermediate_size=96,
            max_position_embeddings=512, attn_implementation="eager",
        )  # fmt: skip
        self.word_embedding = nn.Embedding(vocabulary, width)
        self.lm_head = nn.Linear(width, vocabulary)
        self.lm_head.weight = self.word_embedding.weight
        self.time_embed = nn.Sequential(nn.Linear(TIME, 4 * TIME), nn.SiLU(), nn.Linear(4 * TIME, HIDDEN))
        if width != HIDDEN:
            self.input_up_proj = nn.Sequential(nn.Linear(width, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN))
            self.output_down_proj = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, width))
        self.input_transformers = BertEncoder(config)
        self.register_buffer("position_ids", torch.arange(512)[None])
        self.position_embeddings = nn.Embedding(512, HIDDEN)
        self.LayerNorm = nn.LayerNorm(HIDDEN, eps=1e-12)
        if absorbing:
            self.mean_embed = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        """x: (B, L, e). step: (B,), from 0 to T - 1. Returns x0_hat (B, L, e)."""
        half = TIME // 2
        frequency = torch.exp(-math.log(10000) * torch.arange(half) / half)
        phase = (step.float() * 1000 / TIMESTEPS)[:, None] * frequency
        time = self.time_embed(torch.cat([phase.cos(), phase.sin()], dim=-1))
        up = self.input_up_proj(x) if hasattr(self, "input_up_proj") else x
        positions = self.position_embeddings(self.position_ids[:, : x.shape[1]])
        hidden = self.LayerNorm(up + positions + time[:, None, :])
        hidden = self.input_transformers(hidden).last_hidden_state
        return self.output_down_proj(hidden) if hasattr(self, "output_down_proj") else hidden


@pytest.fixture(scope="module")
def tokenizer(tales_folder):
    texts = [json.loads(line)["text"] for line in (tales_folder / "train.jsonl").open()]
    return train_tokenizer(texts, "word-level", 200, LENGTH)


def write_run(folder: Path, args: dict, network: Published, *, plain: Published | None = None) -> Path:
    """A run folder as these systems write it. plain: weights without averaging, which minimal text diffusion saves."""
    folder.mkdir()
    (folder / "training_args.json").write_text(json.dumps(args))
    for step in (400, 2000):
        torch.save(network.state_dict(), folder / f"ema_0.9999_{step:06d}.pt")
    if plain is not None:
        torch.save(plain.state_dict(), folder / "model002000.pt")
    return folder


SYSTEMS = {
    "diffuseq": (OF_DIFFUSEQ, 16, False),
    "diffuseq-v2": (OF_V2, 16, True),
    "minimal": (OF_MINIMAL, 16, False),
    "minimal-with-embeddings-of-bert": (OF_MINIMAL | {"use_pretrained_embeddings": True}, HIDDEN, False),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_converted_run_predicts_what_the_published_network_predicts(tokenizer, tmp_path, system, capsys):
    args, width, absorbing = SYSTEMS[system]
    torch.manual_seed(0)
    network, plain = (Published(len(tokenizer), width, absorbing=absorbing).eval() for _ in range(2))
    source = write_run(tmp_path / "theirs", args, network, plain=plain if "minimal" in system else None)
    tokenizer.save_pretrained(source)
    before = sorted(path.name for path in source.iterdir())
    assert main([str(source), str(tmp_path / "ours")]) == 0
    assert "converted from" in capsys.readouterr().out and before == sorted(path.name for path in source.iterdir())
    pipeline = TextDiffusionPipeline.from_pretrained(tmp_path / "ours", device="cpu")
    generator = pipeline.generator
    x, step = torch.randn(3, LENGTH, width), torch.tensor([0, 7, TIMESTEPS - 1])
    with torch.no_grad():
        found = generator.denoiser.eval()(x, step / TIMESTEPS)
        torch.testing.assert_close(found, network(x, step), atol=1e-5, rtol=0)
        assert torch.equal(generator.space.space.tokens(x), network.lm_head(x).argmax(-1))
    if absorbing:
        assert torch.equal(generator.absorbing, network.mean_embed)
    held = checkpoints.load(tmp_path / "ours")
    weights = (plain if "minimal" in system else network).word_embedding.weight
    assert held.step == 2000 and torch.equal(held.tensors["model"]["space.vectors.table"], weights)
    saved = read_args(tmp_path / "ours")
    assert (saved["timesteps"], saved["beta_schedule"], saved["max_seq_len"]) == (TIMESTEPS, "sqrt", LENGTH)
    assert (saved["sampler"], saved["clamp"]) == ("dpmpp" if absorbing else "ddpm", system == "diffuseq")
    sources = ["Ben ran to the garden ."]
    texts = pipeline(2, seed=1) if "minimal" in system else pipeline.generate_from_sources(sources, candidates=2)
    assert len(texts) == (2 if "minimal" in system else 1)


def test_a_converted_run_is_where_another_training_starts(tokenizer, programs, tmp_path):
    source = write_run(tmp_path / "theirs", OF_MINIMAL | {"dataset": ""}, Published(len(tokenizer), 16))
    tokenizer.save_pretrained(source)
    run = tmp_path / "ours"
    assert main([str(source), str(run)]) == 0
    space = (
        f"--latent_space embeddings --denoiser_variant encoder --encoder_config {run}/encoder/config.json --init_path "
        f"{run} --vocab {run}/tokenizer --embedding_dim 16 --padding generated --max_seq_len {LENGTH} --timesteps "
        f"{TIMESTEPS} --config encoder_sinusoids=improved_ddpm --config encoder_time_dim={TIME}"
    )
    assert programs.diffusion(space, tmp_path / "more", "--num_train_steps 1 --learning_rate 0") == 0
    before, after = (checkpoints.load(folder).tensors["model"] for folder in (run, tmp_path / "more"))
    assert all(torch.equal(after[name], x) for name, x in before.items() if name.startswith(("denoiser", "space")))


def test_one_checkpoint_may_be_named_and_a_vocabulary_file_be_its_tokenizer(tmp_path):
    words = ["[START]", "[END]", "[UNK]", "[PAD]", "ben", "ran", "home", "no@@", "where"]
    source = write_run(tmp_path / "theirs", OF_DIFFUSEQ | {"vocab": "words.txt"}, Published(len(words), 16))
    (source / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    assert main([str(source / "ema_0.9999_000400.pt"), str(tmp_path / "ours")]) == 0
    assert checkpoints.load(tmp_path / "ours").step == 400
    space = TextDiffusionPipeline.from_pretrained(tmp_path / "ours", device="cpu").generator.space.space
    assert space.tokenizer.convert_tokens_to_ids(words) == list(range(len(words)))


def test_what_cannot_be_converted_is_one_line(tokenizer, tmp_path, capsys):
    network = Published(len(tokenizer), 16)

    def error_of(name: str, args: dict, *flags: str, with_tokenizer: bool = True, drop: str = "") -> str:
        source = write_run(tmp_path / name, args, network)
        if with_tokenizer:
            tokenizer.save_pretrained(source)
        if drop:
            state = {key: x for key, x in network.state_dict().items() if key != drop}
            torch.save(state, source / "ema_0.9999_002000.pt")
        with pytest.raises(SystemExit) as ended:
            main([str(source), str(tmp_path / "out"), *flags])
        line = capsys.readouterr().err
        assert ended.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.partial"))
        return line

    assert "holds no tokenizer: name it with --tokenizer" in error_of("a", OF_MINIMAL, with_tokenizer=False)
    assert "rescale_timesteps is off" in error_of("b", OF_DIFFUSEQ | {"rescale_timesteps": False})
    assert "logits_mode is 2" in error_of("c", OF_MINIMAL | {"logits_mode": 2})
    assert "lacks denoiser.time_vector.up.bias" in error_of("d", OF_DIFFUSEQ, drop="time_embed.0.bias")
    train_tokenizer(["some other words"], "word-level", 50, LENGTH).save_pretrained(tmp_path / "small")
    other = error_of("e", OF_DIFFUSEQ, "--tokenizer", str(tmp_path / "small"))
    assert f"holds {len(tokenizer):,} token embeddings" in other and "--tokenizer" in other
    (tmp_path / "nothing").mkdir()
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nothing"), str(tmp_path / "out")])
    line = capsys.readouterr().err
    assert "holds none of args.json, .hydra/config.yaml, training_args.json" in line and line.count("\n") == 1
