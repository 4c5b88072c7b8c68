"""Pictures of search spaces and of architectures, as figures of matplotlib, SVG text or PNG."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from nas_hpc.nas.architecture import Architecture
from nas_hpc.nas.layout import Box, Layout, Link, lay_out
from nas_hpc.nas.nodes import ConstantNode, Node, VariableNode, optional_sources
from nas_hpc.nas.operations import Connect, Shape, Zero
from nas_hpc.nas.space import SearchSpace
from nas_hpc.nas.wording import does, large_number, wrapped

INK, MUTED, LINE, SKIP = "#1c2733", "#5d6c7b", "#8a98a6", "#c2571a"
FILLS = {
    "input": ("#eef1f4", "#aab5c0"),
    "output": ("#eef1f4", "#aab5c0"),
    "constant": ("#ffffff", "#aab5c0"),
    "variable": ("#e8f0fb", "#1f5fbf"),
    "mirror": ("#e6f4ee", "#2a9d78"),
    "mime": ("#e6f4ee", "#2a9d78"),
    "optional": ("#fdf1ea", SKIP),
}
"""Colours of a box and its border, by kind."""
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.family": "sans-serif",
    "text.color": INK,
}
TITLE, TEXT, HEAD = 9.0, 8.0, 11.0
LEADING = 1.3
PAD_X, PAD_Y, MARGIN = 9.0, 5.0, 12.0
PILL = 15.0
COLUMNS = 52
"""Longer lines of a box are broken."""
DPI, MOST_PIXELS = 110, 2**15


@dataclass(frozen=True, slots=True)
class _Label:
    """What stands in a box."""

    kind: str
    title: str
    lines: Sequence[str] = ()

    def box(self, name: str) -> Box:
        if self.kind == "optional":
            return Box(name, max(PILL, _width(self.title, TEXT) + 8), PILL, late=True)
        width = max([_width(self.title, TITLE, bold=True), *(_width(one, TEXT) for one in self.lines)])
        height = LEADING * (TITLE + len(self.lines) * TEXT)
        return Box(name, width + 2 * PAD_X, height + 2 * PAD_Y)


@dataclass(slots=True)
class _Graph:
    """What is to be drawn."""

    labels: dict[str, _Label] = field(default_factory=dict)
    links: dict[Link, None] = field(default_factory=dict)
    """Each once, in order."""

    def link(self, source: str, target: str, optional: bool = False) -> None:
        self.links[Link(source, target, optional)] = None


# -- of a space ------------------------------------------------------------------------------------------
def draw_space(space: SearchSpace) -> Figure:
    """All nodes with what they may do. An optional connection is a dashed line through a small box with its
    place in the sequence; the other variable nodes have theirs in brackets. Raises WrongCall for a graph
    that is none."""
    space.check_graph()
    graph, count = _Graph(), len(space.variable_nodes)
    places = {node.name: place for place, node in enumerate(space.variable_nodes)}
    skips = {node.name for node in space.variable_nodes if _is_skip(space, node)}
    for node in space.nodes:
        graph.labels[node.name] = _node_label(node, places, node.name in skips)
    for node in space.nodes:
        for source in space.inputs_of(node):
            graph.link(source, node.name, source in skips)
        for source in optional_sources(node):
            graph.link(source, node.name, True)
    _add_outputs(graph, space.outputs, space.output_shapes)
    title = f"{count} choice{'s' * (count != 1)}, {large_number(space.size)} architectures"
    notes = ["[3]: the place of the choice in the sequence"]
    if skips or any(link.optional for link in graph.links):
        notes.append("dashed: an optional connection, with its place in the sequence")
    return _draw(graph, title, notes, "The search space")


def _is_skip(space: SearchSpace, node: VariableNode) -> bool:
    """Whether all that is chosen is a connection, or none."""
    kinds = {type(op) for op in node.ops}
    return kinds <= {Connect, Zero} and Connect in kinds and not space.inputs_of(node)


def _node_label(node: Node, places: Mapping[str, int], skip: bool) -> _Label:
    if skip:
        return _Label("optional", str(places[node.name]))
    if isinstance(node, ConstantNode):
        return _Label("constant", str(node.op), [node.name])
    title = f"[{places[node.name]}] {node.name}" if node.name in places else node.name
    return _Label(node.kind, title, does(node, COLUMNS))


def _add_outputs(graph: _Graph, names: Sequence[str], shapes: Sequence[Shape]) -> None:
    for number, (name, shape) in enumerate(zip(names, shapes, strict=False)):
        title = f"output_{number}" if len(names) > 1 else "output"
        graph.labels[f" {title}"] = _Label("output", title, [str(shape)])
        graph.link(name, f" {title}")


# -- of an architecture ----------------------------------------------------------------------------------
def draw_architecture(architecture: Architecture | Mapping[str, Any]) -> Figure:
    """Its nodes with operation, output shape and parameters; chosen connections in a colour of their own.

    ``architecture`` may be what ``Architecture.to_json`` gave: then no module of a user is imported.
    """
    body = architecture.to_json() if isinstance(architecture, Architecture) else architecture
    graph = _Graph()
    skips = {
        part["name"]: part["inputs"][0] for part in body["nodes"] if part.get("op", {}).get("op") == "Connect"
    }
    for part in body["nodes"]:
        if part["name"] in skips:
            continue
        graph.labels[part["name"]] = _part_label(part)
        for source in part["inputs"]:
            if source in skips:
                graph.link(_first(source, skips), part["name"], True)
            else:
                graph.link(source, part["name"])
    shapes = {part["name"]: tuple(part["shape"]) for part in body["nodes"]}
    ends = [_first(name, skips) for name in body["outputs"]]
    _add_outputs(graph, ends, [shapes[name] for name in body["outputs"]])
    title = f"{body['parameters']:,} parameters, {large_number(body['flops'])} FLOPs an example"
    sequence = ", ".join(map(str, body["arch_seq"]))
    return _draw(graph, title, [f"sequence {sequence}"], "The architecture", dashed=False)


def _first(name: str, skips: Mapping[str, str]) -> str:
    """Where a connection begins that is made of several."""
    return _first(skips[name], skips) if name in skips else name


def _part_label(part: Mapping[str, Any]) -> _Label:
    shape = str(tuple(part["shape"]))
    if "op" not in part:
        return _Label("input", part["name"], [shape])
    lines = [part["name"], shape]
    if part.get("shares"):
        lines.append(f"weights of {part['shares']}")
    elif part["parameters"]:
        lines.append(f"{part['parameters']:,} parameters")
    kind = "mirror" if part.get("shares") else "variable" if part.get("chosen") else "constant"
    return _Label(kind, part["text"], [" · ".join(lines)])


# -- the figure --------------------------------------------------------------------------------------------
def _draw(graph: _Graph, title: str, notes: Iterable[str], what: str, *, dashed: bool = True) -> Figure:
    boxes = {name: label.box(name) for name, label in graph.labels.items()}
    layout = lay_out(list(boxes.values()), list(graph.links))
    width = max(layout.width, 300.0, _width(title, HEAD, bold=True))
    said = [line for note in notes for line in wrapped(note, int(width / (0.58 * TEXT)))]
    head = LEADING * (HEAD + len(said) * TEXT) + 14.0
    size = (width + 2 * MARGIN, layout.height + head + 2 * MARGIN)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(size[0] / 72, size[1] / 72))
        axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-MARGIN, size[0] - MARGIN)
    axes.set_ylim(size[1] - MARGIN, -MARGIN)
    axes.axis("off")
    figure.set_label(f"{what}: {title}")
    _say(axes, 0, 0, title, fontsize=HEAD, weight="bold", va="top")
    for number, line in enumerate(said):
        _say(axes, 0, LEADING * (HEAD + number * TEXT) + 2, line, fontsize=TEXT, color=MUTED, va="top")
    shift = ((width - layout.width) / 2, head)
    _draw_lines(axes, layout, shift, dashed)
    for name, label in graph.labels.items():
        _draw_box(axes, label, boxes[name], layout.centers[name], shift)
    return figure


def _draw_lines(axes: Axes, layout: Layout, shift: tuple[float, float], dashed: bool) -> None:
    for one in layout.segments:
        (x, y), (to_x, to_y) = [(a + shift[0], b + shift[1]) for a, b in (one.start, one.end)]
        colour, order = (SKIP, 2) if one.optional else (LINE, 1)
        tip = max(y, to_y - 4.5) if one.arrives else to_y
        half = (y + tip) / 2
        path = Path(
            [(x, y), (x, half), (to_x, half), (to_x, tip)],
            [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4],
        )
        dashes = (0, (3.5, 2.2)) if one.optional and dashed else "solid"
        axes.add_artist(
            PathPatch(path, facecolor="none", edgecolor=colour, linewidth=1.1, linestyle=dashes, zorder=order)
        )
        if one.arrives:
            tips = [(to_x - 2.8, to_y - 5.5), (to_x + 2.8, to_y - 5.5), (to_x, to_y)]
            axes.add_artist(Polygon(tips, closed=True, facecolor=colour, linewidth=0, zorder=order))


def _draw_box(
    axes: Axes, label: _Label, box: Box, center: tuple[float, float], shift: tuple[float, float]
) -> None:
    x, y = center[0] + shift[0], center[1] + shift[1]
    fill, border = FILLS[label.kind]
    rounding = box.height / 2 if label.kind in ("optional", "input", "output") else 4.0
    axes.add_artist(
        FancyBboxPatch(
            (x - box.width / 2, y - box.height / 2), box.width, box.height, linewidth=1.0, zorder=3,
            boxstyle=f"round,pad=0,rounding_size={rounding}", facecolor=fill, edgecolor=border,
            linestyle=(0, (2.5, 1.5)) if label.kind == "optional" else "solid",
        )
    )  # fmt: skip
    if label.kind == "optional":
        _say(axes, x, y, label.title, fontsize=TEXT, color=SKIP, ha="center", va="center_baseline", zorder=4)
        return
    top = y - box.height / 2 + PAD_Y
    _say(
        axes, x, top + TITLE, label.title, fontsize=TITLE, weight="bold", ha="center", va="baseline", zorder=4
    )
    for number, line in enumerate(label.lines):
        at = top + LEADING * (TITLE + number * TEXT) + TEXT
        _say(axes, x, at, line, fontsize=TEXT, color=MUTED, ha="center", va="baseline", zorder=4)


def _say(axes: Axes, x: float, y: float, text: str, **look: Any) -> None:
    axes.text(x, y, text, parse_math=False, **look)  # names may have dollars


@lru_cache(maxsize=4096)
def _width(text: str, size: float, *, bold: bool = False) -> float:
    """Of ``text`` in points."""
    if not text.strip():
        return 0.0
    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return float(TextPath((0, 0), text, size=size, prop=font, usetex=False).vertices[:, 0].max())


# -- files -------------------------------------------------------------------------------------------------
def to_svg(figure: Figure) -> str:
    """The figure as an <svg> element to stand inside a page, with a name for those who do not see it."""
    title = str(figure.get_label())
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, coarser where it would be larger than programs show."""
    longest = max(figure.get_size_inches())
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=min(DPI, MOST_PIXELS / longest))
    return buffer.getvalue()
