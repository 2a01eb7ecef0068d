"""Draws docs/figures/method.svg, the picture of the method. Standard library only.

    python docs/figures/draw_method.py            writes the file beside this one; the same bytes every time

Top: text <-> latents (stages 0 and 1). Bottom: diffusion on the latents (stage 2) and sampling.
The grids are no decoration: each shows alpha * x0 + sigma * eps for one x0 and one eps, cosine schedule.
"""

from __future__ import annotations

import math
import random
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 1200, 606
INK, SOFT, PAPER = "#1f2933", "#66788a", "#ffffff"
NOISING, DENOISING = "#2b6cb0", "#c05621"
FROZEN, STAGE1, STAGE2 = ("#e6f0fa", "#7fa8d1"), ("#e5f4ea", "#6fb58a"), ("#fdeedc", "#e09f4d")  # (fill, stroke)
ROWS, COLUMNS, CELL = 8, 10, 10
GRID = (COLUMNS * CELL, ROWS * CELL)


def text(
    x: float,
    y: float,
    line: str,
    size: int = 15,
    color: str = INK,
    weight: str = "normal",
    anchor: str = "middle",
    style: str = "normal",
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" font-weight="{weight}" font-style="{style}" '
        f'text-anchor="{anchor}">{escape(line)}</text>'
    )


def box(x: float, y: float, w: float, h: float, colors: tuple[str, str], title: str, *lines: str) -> str:
    """A rounded box, centred title, smaller lines below it."""
    fill, stroke = colors
    rows = [
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="10" fill="{fill}" stroke="{stroke}" '
        'stroke-width="1.6"/>'
    ]
    top = y + h / 2 - 9 * len(lines) + 5
    rows.append(text(x + w / 2, top, title, 15, weight="600"))
    rows += [text(x + w / 2, top + 19 * (i + 1), line, 13, SOFT) for i, line in enumerate(lines)]
    return "\n".join(rows)


def arrow(points: list[tuple[float, float]], color: str = INK, dashed: bool = False) -> str:
    path = " ".join(f"{'M' if i == 0 else 'L'}{x:g} {y:g}" for i, (x, y) in enumerate(points))
    dash = ' stroke-dasharray="6 5"' if dashed else ""
    return (
        f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.8" stroke-linejoin="round"{dash} '
        f'marker-end="url(#head{color[1:]})"/>'
    )


def card(x: float, y: float, w: float, h: float, lines: tuple[str, ...]) -> str:
    """A piece of text on paper."""
    rows = [
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="4" fill="{PAPER}" stroke="#b8c4ce" '
        'stroke-width="1.4"/>'
    ]
    rows += [text(x + 11, y + 25 + 19 * i, line, 13, anchor="start", style="italic") for i, line in enumerate(lines)]
    return "\n".join(rows)


def clean() -> list[float]:
    """A smooth pattern in [-1, 1]: one row per latent, one column per channel."""
    return [
        math.sin(0.9 * row + 0.5) * math.cos(0.75 * column - 0.35 * row)
        for row in range(ROWS)
        for column in range(COLUMNS)
    ]


def color(value: float) -> str:
    """Blue below zero, paper at zero, orange above."""
    share = min(1.0, abs(value) / 1.6)
    end = (0x2B, 0x6C, 0xB0) if value < 0 else (0xDD, 0x7A, 0x1C)
    return "#" + "".join(f"{round(255 + (channel - 255) * share):02x}" for channel in end)


def grid(x: float, y: float, t: float) -> str:
    """Latents at time t: alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""
    alpha, sigma = math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)
    noise = random.Random(7)
    rows = []
    for i, value in enumerate(clean()):
        z = alpha * 1.5 * value + sigma * noise.gauss(0, 1)
        rows.append(
            f'<rect x="{x + CELL * (i % COLUMNS):g}" y="{y + CELL * (i // COLUMNS):g}" width="{CELL}" '
            f'height="{CELL}" fill="{color(z)}"/>'
        )
    rows.append(
        f'<rect x="{x:g}" y="{y:g}" width="{GRID[0]}" height="{GRID[1]}" fill="none" stroke="{INK}" '
        'stroke-width="1.2"/>'
    )
    return "\n".join(rows)


def autoencoder() -> list[str]:
    """Text to latents to text, left to right."""
    y, h = 92, 84
    middle = y + h / 2
    parts = [
        text(30, 42, "Text and latents", 20, weight="700", anchor="start"),
        text(30, 64, "a language model, frozen, and a small autoencoder around it", 14, SOFT, anchor="start"),
        card(30, y + 2, 152, 80, ("Mia lost her kite.", "She looked in the", "tree and found it.")),
        box(224, y, 116, h, FROZEN, "LM encoder", "frozen", "BART, T5, ..."),
        box(400, y, 118, h, STAGE1, "Perceiver", "encoder", "stage 1"),
        grid(550, y + 2, 0.0),
        box(682, y, 118, h, STAGE1, "Perceiver", "decoder", "stage 1"),
        box(860, y, 116, h, FROZEN, "LM decoder", "frozen", "beam search"),
        card(1018, y + 2, 152, 80, ("Mia lost her kite.", "She looked in the", "tree and found it.")),
    ]
    stops = [(182, 224), (340, 400), (518, 550), (650, 682), (800, 860), (976, 1018)]
    parts += [arrow([(a + 2, middle), (b - 3, middle)]) for a, b in stops]
    parts += [
        text(203, y + h + 24, "(B, T)", 13, SOFT),
        text(370, y + h + 24, "(B, T, 768)", 13, SOFT),
        text(600, y - 10, "x₀  (B, 32, 64)", 14, weight="600"),
        text(830, y + h + 24, "(B, 32, 768)", 13, SOFT),
    ]
    return parts


def diffusion() -> list[str]:
    """Clean latents to noise (training) and back (sampling)."""
    y = 392
    spots = [(550, 0.0), (692, 0.3), (834, 0.6), (1070, 1.0)]
    middle = y + GRID[1] / 2
    parts = [
        f'<line x1="30" y1="244" x2="{WIDTH - 30}" y2="244" stroke="#dde4ea" stroke-width="1.4"/>',
        text(30, 284, "Diffusion on the latents", 20, weight="700", anchor="start"),
        text(30, 306, "stage 2: one network learns to see through any amount of noise", 14, SOFT, anchor="start"),
        f'<rect x="532" y="{y - 14}" width="656" height="{GRID[1] + 46}" rx="10" fill="#f7f9fb" stroke="#dde4ea"/>',
        *[grid(x, y, t) for x, t in spots],
        text(600, y + 104, "t = 0", 13, SOFT),
        text(884, y + 104, "t", 13, SOFT),
        text(1120, y + 104, "t = 1", 13, SOFT),
        text(1002, middle + 5, ". . .", 22, SOFT),
        # training: noise is added
        arrow([(630, y - 6), (630, y - 34), (1120, y - 34), (1120, y - 4)], NOISING, dashed=True),
        text(875, y - 46, "training: noise is added,  zₜ = α x₀ + σ ε", 15, NOISING, "600"),
        # sampling: noise is taken away
        arrow([(1120, y + 113), (1120, y + 146), (600, y + 146), (600, y + 116)], DENOISING),
        text(
            860,
            y + 170,
            "sampling: N steps from noise to clean latents (DDPM, DDIM, DPM-Solver++)",
            14,
            DENOISING,
            "600",
        ),
    ]
    # the clean latents above and below are the same thing
    parts += [arrow([(566, 176), (566, y - 3)], NOISING, dashed=True), arrow([(594, y - 2), (594, 178)], DENOISING)]
    # the network
    parts += [
        box(
            196,
            y - 32,
            240,
            144,
            STAGE2,
            "Denoiser",
            "pre-norm transformer",
            "sees zₜ and ᾱ(t)",
            "predicts ε, x₀ or v",
            "stage 2",
        ),
        arrow([(530, middle - 22), (440, middle - 22)]),
        text(485, middle - 31, "zₜ", 15, weight="600"),
        arrow([(438, middle + 22), (528, middle + 22)]),
        text(485, middle + 43, "x̂₀", 15, weight="600"),
        box(30, y - 32, 120, 62, ("#f3f5f7", "#b8c4ce"), "class", "if there is one"),
        box(30, y + 50, 120, 62, ("#f3f5f7", "#b8c4ce"), "source text", "if there is one"),
        arrow([(152, y - 1), (193, y - 1)]),
        arrow([(152, y + 81), (193, y + 81)]),
        arrow([(400, y + 114), (400, y + 146), (236, y + 146), (236, y + 116)]),
        text(318, y + 172, "its last estimate comes back", 14),
        text(318, y + 191, "(self-conditioning)", 13, SOFT),
    ]
    return parts


def key() -> list[str]:
    rows = []
    stages = ((770, FROZEN, "frozen"), (870, STAGE1, "trained in stage 1"), (1035, STAGE2, "trained in stage 2"))
    for x, colors, label in stages:
        rows.append(f'<rect x="{x}" y="31" width="16" height="14" rx="3" fill="{colors[0]}" stroke="{colors[1]}"/>')
        rows.append(text(x + 23, 43, label, 13, SOFT, anchor="start"))
    return rows


def drawing() -> str:
    heads = "".join(
        f'<marker id="head{ink[1:]}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{ink}"/></marker>'
        for ink in (INK, NOISING, DENOISING)
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            'font-family="Inter, Helvetica, Arial, DejaVu Sans, sans-serif" role="img">',
            "<title>Latent text diffusion: text is encoded into latents, a denoiser learns to remove noise from them, "
            "samples are decoded into text</title>",
            f"<defs>{heads}</defs>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>',
            *key(),
            *autoencoder(),
            *diffusion(),
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    Path(__file__).with_name("method.svg").write_text(drawing(), encoding="utf-8")
