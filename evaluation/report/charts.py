"""The charts of a report as plain data, which interactive.py and static.py draw. Computes no metric, draws nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from utils.terminal import single_line

# Colors that can be read on white and on dark grey; and of noise levels, from little noise to much.
COLORS = ("#3b82f6", "#e8833a", "#10a37f", "#d6409f", "#8b5cf6", "#06a4c4", "#9aa32d", "#e5484d")
NOISE_COLORS = ("#1fa2d6", "#6f7ff0", "#c060d8", "#e8577e")
MAX_POINTS = 400  # of a series; a longer one is drawn by means of neighbors
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """A line through points, or a histogram: y then has one value per interval of x."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines, or outlines of histograms."""

    key: str  # name of its PNG file and of its element
    title: str
    xlabel: str
    ylabel: str
    series: Sequence[Series]
    log_y: bool = False
    is_histogram: bool = False
    note: str = ""

    @property
    def legend(self) -> Sequence[Series]:
        """The series that the page names: none if there is one, which the title names."""
        return self.series if len(self.series) > 1 else ()


@dataclass(frozen=True)
class Matrix:
    """A heat map of values in [0, 1]; None: no value."""

    key: str
    title: str
    xlabel: str
    ylabel: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    note: str = ""
    legend: Sequence[Series] = ()


def short(name: str, most: int = 24) -> str:
    """A name of a class on one line, cut to what fits beside a chart."""
    whole = single_line(name)
    return whole if len(whole) <= most else f"{whole[: most - 1]}…"


def line(name: str, points: Points, color: str, dashed: bool = False) -> Series:
    """A series of sorted points, thinned to MAX_POINTS by the means of neighbors."""
    ordered = sorted(points)
    size = -(-len(ordered) // MAX_POINTS)
    groups = [ordered[i : i + size] for i in range(0, len(ordered), size)] if ordered else []
    x = [statistics.fmean(x for x, _ in group) if size > 1 else group[0][0] for group in groups]
    return Series(name, x, [statistics.fmean(y for _, y in group) for group in groups], color, dashed)


def histogram(name: str, edges: Sequence[float], counts: Sequence[float], color: str, dashed: bool = False) -> Series:
    """Counts as shares of their sum, so that sets of different sizes can be compared."""
    total = sum(counts) or 1.0
    return Series(name, list(edges), [count / total for count in counts], color, dashed)


def bin_counts(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """Count the values in each interval; the last contains its upper edge."""
    counts = [0] * (len(edges) - 1)
    low, width = edges[0], edges[1] - edges[0]
    for value in values:
        counts[min(int((value - low) / width), len(counts) - 1)] += 1
    return counts


def even_edges(sets: Mapping[str, Sequence[float]], most: int = 40, whole: bool = False) -> list[float]:
    """Edges of equal intervals over all values. whole: the values are whole numbers, each in the middle of its own."""
    values = [value for part in sets.values() for value in part]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if whole:
        width = max(-(-int(high - low + 1) // most), 1)
        return [low - 0.5 + width * i for i in range(int((high - low) // width) + 2)]
    if high <= low:
        return [max(low - 0.05, 0.0) if low >= 0 else low - 0.05, low + 0.05]
    return [low + (high - low) / most * i for i in range(most + 1)]
