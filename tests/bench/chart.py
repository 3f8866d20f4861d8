"""The chart of the bench: jobs a second, and milliseconds until the request, of this worker and every peer.

`python -m bench.chart` draws it from the JSON that `summary` wrote, in the environment of the peers, where matplotlib
is: so it imports nothing else of this project. The same JSON gives the same file, byte for byte.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
SUMMARY, CHART = PICTURES / "bench.json", PICTURES / "bench.svg"
OURS = "this worker"
# The colour on light paper, and the one on dark paper, for people who have their system so.
INK, DARK_INK = "#1f2328", "#e6edf3"
PAPER, DARK_PAPER = "#ffffff", "#0d1117"
LINES, DARK_LINES = "#d1d9e0", "#3d444d"
STRONG_OURS, STRONG_OTHERS = ("#0969da", "#4493f8"), ("#6e7781", "#9198a1")
WEAK_OURS, WEAK_OTHERS = ("#80b9f5", "#1f4f8f"), ("#c3c9d0", "#4a525b")
COLOURS = dict(
    [(INK, DARK_INK), (PAPER, DARK_PAPER), (LINES, DARK_LINES), STRONG_OURS, STRONG_OTHERS, WEAK_OURS, WEAK_OTHERS]
)
BAR = 0.38  # of the distance between two rows


def in_words(summary: dict[str, Any]) -> str:
    """Return every number of the chart as sentences, for those who do not see it."""
    said = []
    for row in summary["contenders"]:
        at_once, after = row["rate_at_once"][0], row["rate_after_50_ms"][0]
        line = f"{row['name']}: {at_once:,.0f} jobs/s at once, {after:,.0f} after 50 ms"
        if "p50_ms" in row:
            line += f", {_ms(row['p50_ms'][0])} ms (p50), {_ms(row['p99_ms'][0])} ms (p99)"
        said.append(line)
    return "; ".join(said) + "."


def draw(summary: dict[str, Any]) -> str:
    """Return the chart as SVG, in light and dark colours, with its text as text."""
    import matplotlib as mpl  # noqa: PLC0415 - only the peers' environment has it
    from matplotlib.figure import Figure  # noqa: PLC0415

    look = {
        "svg.hashsalt": "bench",  # else ids are random
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.edgecolor": LINES,
        "grid.color": LINES,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK),
    }
    rows = summary["contenders"][::-1]  # the first one stands at the top
    with mpl.rc_context(look):
        figure = Figure(figsize=(9.5, 4.6), facecolor=PAPER)
        rates, waits = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        _draw_rates(rates, rows)
        _draw_waits(waits, rows)
        rates.set_yticks(range(len(rows)), [row["name"] for row in rows])
        figure.text(0.01, 0.015, _caption(summary), fontsize=7.5)
        figure.subplots_adjust(left=0.17, right=0.98, top=0.93, bottom=0.16, wspace=0.06)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _readable(written.getvalue(), in_words(summary))


def _draw_rates(axes: Axes, rows: list[dict[str, Any]]) -> None:
    _frame(axes, "jobs a second: the API answers at once (strong), or after 50 ms (weak)")
    for place, row in enumerate(rows):
        ours = row["name"] == OURS
        strong, weak = (STRONG_OURS, WEAK_OURS) if ours else (STRONG_OTHERS, WEAK_OTHERS)
        for key, colour, offset in (("rate_at_once", strong, BAR / 2), ("rate_after_50_ms", weak, -BAR / 2)):
            median, low, high = row[key]
            axes.barh(place + offset, median, BAR, color=colour[0])
            if low < high:
                axes.plot([low, high], [place + offset] * 2, color=INK, linewidth=0.8)
            axes.annotate(
                f"{median:,.0f}", (high, place + offset), (4, 0), textcoords="offset points", va="center", fontsize=7.5
            )
    axes.set_xlim(0, 1.12 * max(row[key][2] for row in rows for key in ("rate_at_once", "rate_after_50_ms")))


def _draw_waits(axes: Axes, rows: list[dict[str, Any]]) -> None:
    _frame(axes, "ms from enqueueing to the request: p50 to p99")
    axes.set_xscale("log")
    for place, row in enumerate(rows):
        if "p50_ms" not in row:
            continue
        colour = (STRONG_OURS if row["name"] == OURS else STRONG_OTHERS)[0]
        p50, p99 = row["p50_ms"][0], row["p99_ms"][0]
        axes.plot([p50, p99], [place] * 2, color=colour, marker="o", markersize=4.5, linewidth=1.6)
        axes.annotate(
            f"{_ms(p50)} to {_ms(p99)}", (p99, place), (7, 0), textcoords="offset points", va="center", fontsize=7.5
        )
    queues = [row for row in rows if "p50_ms" in row]
    axes.set_xlim(0.7 * min(row["p50_ms"][0] for row in queues), 5 * max(row["p99_ms"][0] for row in queues))
    axes.xaxis.set_major_formatter("{x:g}")


def _frame(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=8.5)
    axes.set_facecolor(PAPER)
    axes.grid(axis="x", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _caption(summary: dict[str, Any]) -> str:
    rounds = summary["rounds"]
    of = "one round" if rounds == 1 else f"medians of {rounds} rounds, thin lines from the lowest to the highest"
    return (
        f"Two worker processes each, {of}; latency at 25 jobs a second.\n"
        f"{summary['cores']} shared cores, {summary['parts']}, {summary['at']}."
    )


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _readable(svg: str, words: str) -> str:
    """Give the picture its words, a font that is there, and the colours of dark paper where that is asked for."""
    dark = "".join(
        f'[style*="{what}: {colour}"]{{{what}:{other}!important}}'
        for colour, other in COLOURS.items()
        for what in ("fill", "stroke")
    )
    style = f"text{{font-family:system-ui,sans-serif!important}}@media(prefers-color-scheme:dark){{{dark}}}"
    head, tag, rest = svg.partition("<svg ")
    opening, end, inner = rest.partition(">")
    about = f"<title>Jobs a second and latency, beside every peer</title>\n <desc>{escape(words)}</desc>"
    return f'{head}{tag}role="img" {opening}{end}\n {about}\n <style>{style}</style>{inner}'


def main() -> None:
    source, chart = map(Path, sys.argv[1:3] or (SUMMARY, CHART))
    chart.write_text(draw(json.loads(source.read_text())), encoding="utf-8")
    sys.stdout.write(f"Drawn to {chart}\n")


if __name__ == "__main__":
    main()
