"""How near the latents that a denoiser samples are to those of real texts, by sampler: no text is decoded.

    python benchmarks/latent_distance.py runs/captions/diffusion --references train.jsonl --output_dir runs/distance \\
        --sampling "ddpm" "dpmpp --time_grid karras" "dpmpp_sde --time_grid shifted"

Each of --sampling names a sampler and further flags of an evaluation; --sampling_timesteps is the same for all of them
unless one gives its own. For each it writes, to distance.json and distance.md:

    frechet   Frechet distance of two Gaussians, fitted to n sampled and n real latents (Heusel et al. 2017, eq. 6),
              summed over the dimensions
    auc       how well a small network, trained on 70 % of both, tells the others apart (Lopez-Paz and Oquab 2017); .5:
              not at all
    variance  mean variance of a dimension

Of texts with several latents, frechet_one and auc_one compare single latents, all positions together; where their
number differs from text to text, those with the most latents alone are compared. The row `real` compares n other real
texts: a perfect sampler would have its numbers, which depend on n.
"""

from __future__ import annotations

import random
import shlex
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.argparse_utils import OneLineParser
from utils.errors import UserError, exit_on_user_error
from utils.run_folder import write_json, write_text
from utils.terminal import aligned

if TYPE_CHECKING:
    from torch import Tensor

    from utils.records import Latents

BATCH = 500  # texts


def parser() -> ArgumentParser:
    made = OneLineParser(
        prog="python benchmarks/latent_distance.py",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("run", type=Path, help="run folder of a diffusion model")
    add("--references", type=Path, required=True, metavar="FILE", help="real texts, at least 2n of them")
    add("--sampling", nargs="+", default=["ddpm"], metavar="SAMPLER [FLAGS]", help="what is compared (default: ddpm)")
    add("--sampling_timesteps", type=int, default=32, help="steps of the sampler (default: 32)")
    add("--n", type=int, default=5000, help="latents of each side (default: 5000)")
    add("--seed", type=int, default=42)
    add("--output_dir", type=Path, required=True, metavar="DIR")
    return made


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from evaluation.score.__main__ import read

    if args.n < 10:
        raise UserError(f"--n {args.n} is too small: give 10 or more, some thousands for numbers that can be compared")
    texts = read(args.references, "references").first()
    if len(texts) < 2 * args.n:
        raise UserError(f"--references {args.references} has {len(texts)} texts: --n {args.n} needs {2 * args.n}")
    random.Random(args.seed).shuffle(texts)
    real = real_latents(args.run, texts[: 2 * args.n])
    if len(real) < 20:
        raise UserError(f"--references {args.references}: {len(real)} texts have all latents: give more")
    first, second = real[: len(real) // 2], real[len(real) // 2 :]
    rows = {"real": compare(first, second, args.seed)}
    steps = ["--sampling_timesteps", str(args.sampling_timesteps)]
    for named in ["", *args.sampling]:
        if named:
            drawn = sampled_latents(args.run, [*steps, "--sampler", *shlex.split(named)], args.n, args.seed)
            rows[named] = compare(first, drawn, args.seed)
        table = [["latents", *rows["real"]], *([name, *map(str, row.values())] for name, row in rows.items())]
        print(aligned(table[-1:]), flush=True)
        write_json(args.output_dir / "distance.json", {"n": args.n, "seed": args.seed, "rows": rows})
        write_text(args.output_dir / "distance.md", markdown(table))
    print(f"written to {args.output_dir}: distance.json, distance.md")
    return 0


def markdown(table: Sequence[Sequence[str]]) -> str:
    head, *rows = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([head, "|---" * len(table[0]) + "|", *rows]) + "\n"


def real_latents(run: Path, texts: Sequence[str]) -> Tensor:
    """The latents (n, L, D) of texts, of those that have L."""
    import torch

    from pipelines.text_diffusion import TextDiffusionPipeline

    pipe = TextDiffusionPipeline.from_pretrained(run, argv=[])
    rows = [complete(pipe.encode(texts[i : i + BATCH])) for i in range(0, len(texts), BATCH)]
    return torch.cat([row for row in rows if row.shape[1] == pipe.generator.space.length])


def complete(latents: Latents) -> Tensor:
    """Those texts of a batch that have all latents, (n, L, D)."""
    return latents.x0[latents.mask.all(1)].float().cpu()


def sampled_latents(run: Path, flags: Sequence[str], n: int, seed: int) -> Tensor:
    """The latents (n, L, D) of n texts that the denoiser samples with these flags, of those that have L."""
    import torch

    from pipelines.text_diffusion import TextDiffusionPipeline

    pipe = TextDiffusionPipeline.from_pretrained(run, argv=["--eval_batch_size", str(min(n, BATCH)), *flags])
    drawn = 0
    blocks: list[Tensor] = []
    while drawn < n:  # a block may hold fewer than were asked for
        latents = pipe.generator.sample_latents(seed, len(blocks))
        drawn += len(latents.x0)
        blocks.append(complete(latents))
    return torch.cat([block for block in blocks if block.shape[1] == pipe.generator.space.length])


def compare(real: Tensor, other: Tensor, seed: int) -> dict[str, float]:
    """The numbers of as many latents (n, L, D) on both sides."""
    n, length = min(len(real), len(other)), real.shape[1]
    real, other = real[:n], other[:n]
    found = {
        "n": n,
        "frechet": round(frechet_distance(real.flatten(1), other.flatten(1)), 3),
        "auc": round(two_sample_auc(real.flatten(1), other.flatten(1), seed), 3),
        "variance": round(float(other.flatten(1).var(0).mean()), 3),
    }
    if length > 1:
        one = real.flatten(0, 1), other.flatten(0, 1)
        found |= {"frechet_one": round(frechet_distance(*one), 3), "auc_one": round(two_sample_auc(*one, seed), 3)}
    return found


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mean difference|^2 + trace(A + B - 2 (A B)^(1/2)) of the Gaussians of rows a (n, d) and b (m, d)."""
    import torch

    a, b = a.double(), b.double()
    first, second = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # (A B)^(1/2) has the trace of (A^(1/2) B A^(1/2))^(1/2), which is symmetric
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * cross)


def two_sample_auc(a: Tensor, b: Tensor, seed: int) -> float:
    """AUC on 30 % of the rows of a network of one hidden layer that learns on the others which side a row is of."""
    import torch
    from torch import nn
    from torch.nn.functional import binary_cross_entropy_with_logits

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rows, sides = torch.cat([a, b]), torch.cat([torch.zeros(len(a)), torch.ones(len(b))])
        order = torch.randperm(len(rows))
        rows, sides, cut = rows[order], sides[order], int(0.7 * len(rows))
        network: Any = nn.Sequential(nn.Linear(rows.shape[1], 256), nn.GELU(), nn.Dropout(0.3), nn.Linear(256, 1))
        optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.05)
        for _ in range(12):
            for batch in torch.randperm(cut).split(250):
                loss = binary_cross_entropy_with_logits(network(rows[batch])[:, 0], sides[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    with torch.no_grad():
        scores = network.eval()(rows[cut:])[:, 0]
    of_b, of_a = scores[sides[cut:] == 1], scores[sides[cut:] == 0]
    wins = (of_b[:, None] > of_a[None]).float() + 0.5 * (of_b[:, None] == of_a[None]).float()
    return float(wins.mean())


if __name__ == "__main__":
    raise SystemExit(main())
