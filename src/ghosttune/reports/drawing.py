"""Drawings: one palette for light and dark, panels that fit a desk and a phone, and how they become SVG and PNG.

A drawing is made once per width. In the page its colours are variables of the style sheet, so that one SVG serves both
themes, and its text is text of the page; the PNG is the wide drawing in light colours.
"""

from __future__ import annotations

import gc
import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

PALETTE = {
    "paper": ("#fdfdfc", "#16191d"),
    "ink": ("#20242a", "#e4e7eb"),
    "soft": ("#5b6470", "#a3acb8"),
    "grid": ("#dfe2e6", "#333a43"),
    "shade": ("#eef0f3", "#20252c"),
    "frozen": ("#c3c8cf", "#4a525d"),
    "blue": ("#0072b2", "#5cb8f0"),
    "orange": ("#d55e00", "#ff9147"),
    "green": ("#00855f", "#33cfa0"),
    "purple": ("#a9508a", "#e295c8"),
    "gold": ("#8f6a00", "#f0c33c"),
    "early0": ("#440154", "#355f8d"),
    "early1": ("#46307e", "#287d8e"),
    "early2": ("#375a8c", "#1f9a8a"),
    "early3": ("#287d8e", "#32b67a"),
    "early4": ("#1f9f88", "#6ece58"),
    "early5": ("#44bf70", "#bddf26"),
    "early6": ("#95d840", "#fde725"),
}
"""Name -> (light, dark), after Okabe and Ito (2008): told apart with every common colour blindness, and in grey.

early0 to early6 are steps of viridis that stand out on their paper.
"""

LIGHT = {name: light for name, (light, _) in PALETTE.items()}

GROUP_COLOURS = {
    "attention": "blue",
    "mlp": "orange",
    "embedding": "green",
    "head": "purple",
    "norm": "gold",
    "total": "ink",
}
"""Group of modules -> its colour in every figure; any other is `soft`."""

MAP = "viridis"
"""Colour map of heat maps: rises evenly in brightness, also for the colour-blind."""

WIDE, NARROW = 960, 380
"""Widths of a drawing in points, which are pixels of the page at full size."""

POINT = 1 / 72
"""Inches."""

LONGEST_LABEL = 40

SCALE_HEAD = 46
"""Points that `colour_bar` needs above the panels."""

View = Callable[[bool], "Drawing"]
"""Narrow or wide -> a drawing."""


@dataclass(frozen=True)
class Span:
    """A phase, as figures mark it: what trains in updates start + 1 … end."""

    start: int
    end: int
    name: str


def colour_of(group: str) -> str:
    """The colour in which a group is drawn."""
    return LIGHT[GROUP_COLOURS.get(group, "soft")]


def in_order(groups: Iterable[str]) -> list[str]:
    """Groups in the order in which every figure has them."""
    known = list(GROUP_COLOURS)
    return sorted(groups, key=lambda group: (known.index(group) if group in known else len(known), group))


def label(text: object, longest: int = LONGEST_LABEL) -> str:
    """Text of a user's file, fit to stand in a figure: one printable line of limited length."""
    line = "".join(char if char.isprintable() else " " for char in str(text))
    return line if len(line) <= longest else line[: longest - 1] + "…"


@contextmanager
def styled(salt: str = "") -> Iterator[None]:
    """Our style inside; `salt` keeps ids of several SVGs in one page apart, and the same in every run."""
    import matplotlib

    settings: dict[Any, Any] = {
        "axes.axisbelow": True,
        "axes.edgecolor": LIGHT["soft"],
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.labelcolor": LIGHT["soft"],
        "axes.linewidth": 0.8,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": LIGHT["ink"],
        "axes.titlelocation": "left",
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.formatter.limits": (-4, 6),
        "figure.facecolor": LIGHT["paper"],
        "font.size": 11,
        "grid.color": LIGHT["grid"],
        "grid.linewidth": 0.8,
        "hatch.color": LIGHT["frozen"],
        "hatch.linewidth": 1.2,
        "legend.frameon": False,
        "legend.labelcolor": LIGHT["ink"],
        "lines.linewidth": 1.8,
        "savefig.facecolor": LIGHT["paper"],
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.color": LIGHT["ink"],
        "text.parse_math": False,
        "xtick.color": LIGHT["soft"],
        "ytick.color": LIGHT["soft"],
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Labels may be in any script; the page draws them with the reader's fonts, only the PNG shows a box.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support")
        yield


def panels(
    narrow: bool,
    titles: Sequence[str],
    *,
    height: float = 210,
    columns: int = 2,
    left: float = 62,
    foot: float = 44,
    head: float = 0,
) -> tuple[Drawing, list[Axes]]:
    """A drawing with one panel per title: side by side on a desk, below each other on a phone.

    All lengths are points: `height` of a panel, `left` for its tick labels, `foot` for the label of the last row,
    `head` above everything, for a legend.
    """
    from matplotlib.figure import Figure

    columns = 1 if narrow else min(columns, len(titles))
    rows = -(-len(titles) // columns)
    width, above, between = NARROW if narrow else WIDE, 26, 22
    cell = width / columns
    total = head + rows * (above + height + between) + foot - between
    drawing = Figure(figsize=(width * POINT, total * POINT))
    axes = []
    for place, title in enumerate(titles):
        row, column = divmod(place, columns)
        top = head + row * (above + height + between) + above
        box = (column * cell + left, total - top - height, cell - left - 14, height)
        ax = drawing.add_axes((box[0] / width, box[1] / total, box[2] / width, box[3] / total))
        ax.set_title(title)
        axes.append(ax)
    return drawing, axes


def key(drawing: Drawing, entries: Mapping[str, Any], narrow: bool) -> None:
    """One legend for all panels, in the head of the drawing."""
    columns = min(len(entries), 2 if narrow else 7)
    place = {"loc": "upper left", "bbox_to_anchor": (0.01, 1.0), "borderaxespad": 0.3, "columnspacing": 1.4}
    drawing.legend(list(entries.values()), list(entries), ncols=columns, handlelength=1.8, **place)


def head_of(entries: int, narrow: bool) -> float:
    """Points that `key` needs for so many entries."""
    return 12 + 18 * -(-entries // (2 if narrow else 7))


def shade_phases(axes: Sequence[Axes], spans: Sequence[Span], names: bool = True) -> None:
    """Every second phase shaded, with its name where there is room for it."""
    if len(spans) < 2:
        return
    for ax in axes:
        if names:
            _leave_a_strip(ax)
        low, high = ax.get_xlim()
        points = ax.get_position().width * ax.figure.get_figwidth() / POINT  # type: ignore[union-attr]
        for place, span in enumerate(spans):
            if place % 2:
                ax.axvspan(span.start, span.end, color=LIGHT["shade"], zorder=0, linewidth=0)
            elif place:
                ax.axvline(span.start, color=LIGHT["frozen"], linewidth=0.8, zorder=1)
            begin, end = max(span.start, low), min(span.end, high)
            if names and (end - begin) / (high - low) * points > 7 * len(span.name) + 4:
                where = {"ha": "center", "va": "top", "fontsize": 10, "color": LIGHT["soft"]}
                ax.text((begin + end) / 2, 0.99, span.name, transform=ax.get_xaxis_transform(), **where)
        ax.set_xlim(low, high)


def _leave_a_strip(ax: Axes) -> None:
    """Room for names above what is drawn."""
    bottom, top = ax.get_ylim()
    share = 0.09
    ax.set_ylim(bottom, top * (top / bottom) ** share if ax.get_yscale() == "log" else top + share * (top - bottom))


def colour_bar(drawing: Drawing, mesh: Any, left: float) -> Axes:
    """The scale of a map, in a head of SCALE_HEAD points."""
    width, height = drawing.get_figwidth() / POINT, drawing.get_figheight() / POINT
    bar = drawing.add_axes((left / width, 1 - 16 / height, min(320, width - 2 * left) / width, 9 / height))
    drawing.colorbar(mesh, cax=bar, orientation="horizontal")
    return bar


def count_steps(ax: Axes) -> None:
    """The axis below counts steps."""
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def use_logarithm(ax: Axes) -> None:
    """A logarithmic value axis with plain numbers, where there is anything above zero to show."""
    lines: Any = [line.get_ydata() for line in ax.lines]
    bars: Any = [bar.get_height() for bar in ax.patches]  # type: ignore[attr-defined]
    heights = [value for values in [*lines, bars] for value in values if value > 0]
    if not heights:
        return
    ax.set_yscale("log", nonpositive="mask")
    write_plainly(ax.yaxis, min(heights), max(heights))


def write_plainly(axis: Any, low: float, high: float) -> None:
    """Numbers without powers of ten on a logarithmic axis; over a short range also 2 and 5, or all, between them."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axis.set_major_formatter(FuncFormatter(_plain))
    if high < 30 * low:
        axis.set_minor_formatter(FuncFormatter(_plain if high < 4 * low else _two_and_five))
    else:
        axis.set_minor_locator(NullLocator())


def _plain(value: float, _: object = None) -> str:
    return f"{value:g}"


def _two_and_five(value: float, _: object = None) -> str:
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


@dataclass(frozen=True)
class Pictures:
    """A view as files have it."""

    svgs: Mapping[str, str]
    """wide and narrow: SVG elements to stand in a page."""
    png: bytes
    """The wide drawing."""


@contextmanager
def collecting_later() -> Iterator[None]:
    """Drawings are full of cycles, and looking for them again and again takes an eighth of the time they take."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def pictures_of(view: View, identity: str) -> Pictures:
    """All pictures of a view; `identity` is its own in the page."""
    with styled(f"{identity}-wide"):
        drawing = view(False)
        png, wide = _as_png(drawing), _as_svg(drawing)  # made once: half the time goes into that
    with styled(f"{identity}-narrow"):
        narrow = _as_svg(view(True))
    return Pictures({"wide": wide, "narrow": narrow}, png)


def _as_svg(drawing: Drawing) -> str:
    """The drawing as an SVG element to stand in a page: no header, no metadata, colours from the style sheet."""
    buffer = io.StringIO()
    drawing.set_facecolor("none")
    drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None}, dpi=100)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in every drawing, and nothing refers to them
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1>", text, count=1)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font: bold ([\d.]+)px [^;\"]*", r"font-weight: bold; font-size: \1px", text)
    for name, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{name})")
    return text


def _as_png(drawing: Drawing) -> bytes:
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=110, pil_kwargs={"compress_level": 4})
    return buffer.getvalue()
