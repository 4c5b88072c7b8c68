"""Pictures of spaces and architectures: everything stands in them, nothing covers another thing."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.text import Text

from nas_hpc.errors import WrongCall
from nas_hpc.nas import ConstantNode, MimeNode, MirrorNode, SearchSpace, VariableNode
from nas_hpc.nas.drawing import SKIP, draw_architecture, draw_space, to_png, to_svg
from nas_hpc.nas.layout import Box, Layout, Link, lay_out
from nas_hpc.nas.operations import Concatenate, Connect, Dense, Dropout, Identity, Operation, Zero
from nas_hpc.nas.wording import choice_lines, large_number
from tests.nas.spaces import dense_space, image_space, sequences, vector_spaces
from tests.support import examples


def texts(figure: Figure) -> list[str]:
    """All that is said, from the SVG as a reader's program sees it."""
    root = ElementTree.fromstring(to_svg(figure))
    return ["".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")]


def boxes(figure: Figure) -> list[FancyBboxPatch]:
    return [one for one in figure.axes[0].get_children() if isinstance(one, FancyBboxPatch)]


# -- the layout -----------------------------------------------------------------------------------------
@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Box], list[Link]]:
    count = draw(st.integers(1, 12))
    sizes = st.floats(5, 200)
    found = [Box(f"n{n}", draw(sizes), draw(sizes), draw(st.booleans())) for n in range(count)]
    pairs = [(a, b) for b in range(count) for a in range(b)]
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=30, unique=True)) if pairs else []
    return found, [Link(f"n{a}", f"n{b}", draw(st.booleans())) for a, b in chosen]


def spans(layout: Layout, found: list[Box]) -> list[tuple[float, float, float, float]]:
    return [
        (x - box.width / 2, x + box.width / 2, y - box.height / 2, y + box.height / 2)
        for box in found
        for x, y in [layout.centers[box.name]]
    ]


@settings(max_examples=examples(100), deadline=None)
@given(graphs())
def test_boxes_cover_no_other_and_stand_in_the_picture(graph: tuple[list[Box], list[Link]]) -> None:
    layout = lay_out(*graph)
    places = spans(layout, graph[0])
    for number, (left, right, top, bottom) in enumerate(places):
        assert left > -1e-6 and right < layout.width + 1e-6  # noqa: PT018
        assert top > -1e-6 and bottom < layout.height + 1e-6  # noqa: PT018
        for other in places[:number]:
            assert right <= other[0] or other[1] <= left or bottom <= other[2] or other[3] <= top


@settings(max_examples=examples(100), deadline=None)
@given(graphs())
def test_every_link_goes_down_from_its_box_to_the_other_past_all_boxes(
    graph: tuple[list[Box], list[Link]],
) -> None:
    found, links = graph
    layout = lay_out(found, links)
    places = spans(layout, found)
    for one in layout.segments:
        (x, y), (to_x, to_y) = one.start, one.end
        assert y <= to_y
        beside = [p for p in places if p[3] > y + 1e-6 and p[2] < to_y - 1e-6]
        assert x == to_x or not beside  # it moves aside between the rows alone
        assert not [p for p in beside if p[0] < x < p[1]]
    for link in links:
        (x, y), (to_x, to_y) = layout.centers[link.source], layout.centers[link.target]
        heights = {box.name: box.height / 2 for box in found}
        start, end = (x, y + heights[link.source]), (to_x, to_y - heights[link.target])
        assert leads(layout, start, end, link.optional), link


def leads(layout: Layout, start: tuple[float, float], end: tuple[float, float], optional: bool) -> bool:
    """Whether segments of one kind make a way between two points."""
    here = [start]
    seen: set[tuple[float, float]] = set()
    while here:
        point = here.pop()
        if near(point, end):
            return True
        if point in seen:
            continue
        seen.add(point)
        here += [one.end for one in layout.segments if one.optional == optional and near(one.start, point)]
    return False


def near(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return abs(one[0] - other[0]) < 1e-6 and abs(one[1] - other[1]) < 1e-6


@settings(max_examples=examples(30), deadline=None)
@given(graphs())
def test_a_late_box_stands_right_above_the_first_that_it_leads_to(
    graph: tuple[list[Box], list[Link]],
) -> None:
    found, links = graph
    layout = lay_out(found, links)
    rows = sorted({y for _, y in layout.centers.values()})
    row = {name: rows.index(y) for name, (_, y) in layout.centers.items()}
    for box in found:
        following = [row[link.target] for link in links if link.source == box.name]
        if box.late and following:
            assert min(following) - row[box.name] == 1


def test_a_chain_stands_in_a_straight_line() -> None:
    found = [Box(f"n{n}", 40.0 + 7 * n, 20.0) for n in range(6)]
    layout = lay_out(found, [Link(f"n{n}", f"n{n + 1}") for n in range(5)])
    assert len({round(x, 6) for x, _ in layout.centers.values()}) == 1
    assert [layout.centers[f"n{n}"][1] for n in range(6)] == sorted(y for _, y in layout.centers.values())


def test_two_chains_cross_nowhere() -> None:
    found = [Box(f"{side}{n}", 30.0, 20.0) for n in range(5) for side in ("ab", "ba")[n % 2]]
    layout = lay_out(found, [Link(f"{side}{n}", f"{side}{n + 1}") for n in range(4) for side in "ab"])
    order = {layout.centers[f"a{n}"][0] < layout.centers[f"b{n}"][0] for n in range(5)}
    assert len(order) == 1


# -- spaces ------------------------------------------------------------------------------------------------
def test_the_picture_of_a_space_lists_nodes_choices_and_places_in_the_sequence() -> None:
    said = texts(draw_space(dense_space(layers=2)))
    assert "5 choices, 5,000 architectures" in said
    for line in (
        "input_0", "(64,)", "[0] dense_0", "[2] dense_1", "0: Identity",
        "1–24: Dense(16…96 by 16, relu|tanh|sigmoid|linear)", "AddByProjecting(relu)", "merge_0", "merge_1",
        "Dense(10, softmax)", "classes", "output", "(10,)",
    ):  # fmt: skip
        assert line in said
    assert Counter(said)["1"] == Counter(said)["3"] == Counter(said)["4"] == 1  # optional connections


def test_mirror_and_mime_nodes_say_whose() -> None:
    said = texts(draw_space(image_space()))
    assert {"again", "chooses as cell", "same", "is cell"} <= set(said)


def test_optional_connections_are_dashed_and_others_are_not() -> None:
    lines = [
        one for one in draw_space(dense_space(layers=2)).axes[0].get_children() if type(one) is PathPatch
    ]
    dashed = {one.get_edgecolor(): one.get_linestyle() != "solid" for one in lines}
    assert sorted(dashed.values()) == [False, True]
    plain = draw_space(image_space()).axes[0].get_children()
    assert all(one.get_linestyle() == "solid" for one in plain if type(one) is PathPatch)


@settings(max_examples=examples(8), deadline=None)
@given(vector_spaces())
def test_every_node_of_a_random_space_has_a_box_with_its_text_inside(space: SearchSpace) -> None:
    figure = draw_space(space)
    assert len(boxes(figure)) == len(space.nodes) + len(space.outputs)
    texts_stand_inside(figure)


def texts_stand_inside(figure: Figure) -> None:
    """Of every box, in pixels as they are drawn; and no text stands on a strange box."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer: Any = canvas.get_renderer()
    frames = [box.get_window_extent(renderer) for box in boxes(figure)]
    whole = figure.bbox
    for text in figure.axes[0].get_children():
        if isinstance(text, Text) and text.get_text():
            place = text.get_window_extent(renderer)
            assert whole.x0 <= place.x0 and place.x1 <= whole.x1, text.get_text()  # noqa: PT018
            on = [frame for frame in frames if frame.overlaps(place)]
            for frame in on:
                assert frame.x0 <= place.x0 and place.x1 <= frame.x1 + 1, text.get_text()  # noqa: PT018
                assert frame.y0 <= place.y0 + 2 and place.y1 <= frame.y1 + 2, text.get_text()  # noqa: PT018
            assert len(on) <= 1


@pytest.mark.slow
def test_a_space_of_30_nodes_with_skip_connections_stays_narrow_and_its_texts_readable() -> None:
    figure = draw_space(dense_space(layers=30))
    width, height = figure.get_size_inches()
    assert width < 9  # a page's
    assert height < 60
    assert len(boxes(figure)) == 1 + 30 + 30 + 87 + 1 + 1
    texts_stand_inside(figure)
    assert min(one.get_fontsize() for one in figure.axes[0].get_children() if isinstance(one, Text)) >= 8


def test_a_graph_that_is_none_is_not_drawn() -> None:
    space = SearchSpace((4,), (2,))
    space.connect(space.inputs[0], VariableNode("a", [Dense(2), Dense(3)]))
    space.add(ConstantNode(Dense(2), "lonely"))
    with pytest.raises(WrongCall, match="nothing is connected to the node lonely"):
        draw_space(space)


# -- architectures ------------------------------------------------------------------------------------------
def test_the_picture_of_an_architecture_has_shapes_parameters_and_the_sequence() -> None:
    space = dense_space(layers=2)
    one = space.architecture([1, 0, 7, 1, 0])
    said = texts(draw_architecture(one))
    assert f"{one.parameters:,} parameters, {one.flops:,} FLOPs an example" in said
    assert "sequence 1, 0, 7, 1, 0" in said
    assert {"Dense(16, relu)", "dense_0 · (16,) · 1,040 parameters", "merge_0 · (16,)"} <= set(said)
    assert not [line for line in said if "Connect" in line or "variable_" in line]


def test_a_chosen_connection_is_a_line_of_its_own_colour_between_what_it_connects() -> None:
    space = dense_space(layers=2)
    colours = []
    for skip in (0, 1):
        figure = draw_architecture(space.architecture([1, 0, 7, skip, 0]))
        lines = [one for one in figure.axes[0].get_children() if type(one) is PathPatch]
        colours.append(sum(one.get_edgecolor() == _rgba(SKIP) for one in lines))
        assert all(one.get_linestyle() == "solid" for one in lines)
    assert colours[0] == 0 < colours[1]


def _rgba(colour: str) -> tuple[float, ...]:
    from matplotlib.colors import to_rgba

    return to_rgba(colour)


def test_a_chosen_connection_beside_a_fixed_one_is_seen() -> None:
    space = SearchSpace((4,), (2,))
    space.connect(space.inputs[0], end := ConstantNode(Concatenate(), "end"))
    space.connect(VariableNode("skip", [Zero(), Connect("input_0")]), end)
    space.connect(end, ConstantNode(Dense(2), "out"))
    lines = [
        [one.get_edgecolor() for one in draw_architecture(space.architecture([skip])).axes[0].get_children()
         if type(one) is PathPatch]
        for skip in (0, 1)
    ]  # fmt: skip
    assert [(len(some), _rgba(SKIP) in some) for some in lines] == [(3, False), (4, True)]


def test_connections_of_connections_and_connected_outputs_are_drawn() -> None:
    space = SearchSpace((4,), (4,))
    first = VariableNode("first", [Identity(), Dense(4)])
    space.connect(space.inputs[0], first)
    space.add(second := VariableNode("second", [Zero(), Connect(first)]))
    space.add(third := VariableNode("third", [Connect(second), Connect(first)]))
    said = texts(draw_architecture(space.architecture([1, 1, 0])))
    assert {"first · (4,) · 20 parameters", "output", "(4,)"} <= set(said)
    assert third.name not in " ".join(said)


@settings(max_examples=examples(8), deadline=None)
@given(st.data())
def test_every_part_of_a_random_architecture_has_a_box_with_its_text_inside(data: st.DataObject) -> None:
    space = data.draw(vector_spaces())
    one = space.architecture(data.draw(sequences(space)))
    figure = draw_architecture(one)
    drawn = [part for part in one.parts if part.operation is None or "Connect" not in str(part.operation)]
    assert len(boxes(figure)) == len(drawn) + len(one.outputs)
    texts_stand_inside(figure)


def test_the_json_form_gives_the_same_picture_and_needs_no_class_of_an_operation() -> None:
    one = image_space().architecture([2, 0, 1])
    assert to_svg(draw_architecture(one.to_json())) == to_svg(draw_architecture(one))
    foreign = one.to_json()
    foreign["nodes"][1]["op"] = {"op": "no_such_module.Op"}
    assert "Conv2D(8, 3, relu)" in texts(draw_architecture(foreign))


def test_shared_weights_are_said_and_counted_once() -> None:
    space = SearchSpace((4,), (2,))
    space.connect(space.inputs[0], choice := VariableNode("a", [Dense(3), Dense(4)]))
    for node in (MirrorNode(choice, "mirror"), MimeNode(choice, "mime")):
        space.connect(space.inputs[0], node)
    end = ConstantNode(Concatenate(), "end")
    for name in ("a", "mirror", "mime"):
        space.connect(next(node for node in space.nodes if node.name == name), end)
    space.connect(end, ConstantNode(Dense(2), "out"))
    said = texts(draw_architecture(space.architecture([0])))
    assert "mirror · (3,) · weights of a" in said
    assert "mime · (3,) · 15 parameters" in said


# -- files and words -------------------------------------------------------------------------------------
def test_svg_is_one_element_with_a_name_and_the_same_every_time() -> None:
    text = to_svg(draw_space(dense_space(layers=1)))
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img"
    assert root.get("aria-label") == "The search space: 2 choices, 50 architectures"
    assert text == to_svg(draw_space(dense_space(layers=1)))


def test_names_with_dollars_and_angle_brackets_are_said_as_they_are() -> None:
    space = SearchSpace((4,), (2,))
    space.connect(space.inputs[0], VariableNode("a$b$<&>", [Dense(2), Dense(2, "relu")]))
    assert "[0] a$b$<&>" in texts(draw_space(space))


def test_png_is_a_picture_of_the_figures_size() -> None:
    figure = draw_space(dense_space(layers=1))
    data = to_png(figure)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    size = np.frombuffer(data[16:24], dtype=">u4")
    assert size.tolist() == [int(inches * 110) for inches in figure.get_size_inches()]


@pytest.mark.parametrize(
    ("ops", "lines"),
    [
        ([Identity()], ["0: Identity"]),
        ([Dense(3), Dense(5)], ["0–1: Dense(3|5)"]),
        ([Dense(n, a) for n in (3, 5) for a in ("relu", "")], ["0–3: Dense(3|5, relu|linear)"]),
        ([Dense(n) for n in range(8, 65, 8)], ["0–7: Dense(8…64 by 8)"]),
        ([Dense(n) for n in range(1, 7)], ["0–5: Dense(1…6)"]),
        ([Dense(2**n) for n in range(6)], ["0–5: Dense(1|2|4|8|16|32)"]),
        ([Dense(3, "relu"), Dense(5)], ["0–1: Dense(3, relu); Dense(5)"]),
        ([Dense(n, "relu" if n % 3 else "") for n in range(1, 7)],
         ["0–5: Dense(1, relu); Dense(2, relu); Dense(3);", "Dense(4, relu); and 2 more"]),
        ([Identity(), Dropout(0.1), Dropout(0.5)], ["0: Identity", "1–2: Dropout(0.1|0.5)"]),
    ],
)  # fmt: skip
def test_choices_are_said_briefly_with_their_numbers(ops: list[Operation], lines: list[str]) -> None:
    assert choice_lines(ops, 52) == lines


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0"), (12_345, "12,345"), (10**15 - 1, "999,999,999,999,999"), (134 * 10**66, "1.34 × 10^68")],
)
def test_large_numbers_are_powers_of_ten(number: int, said: str) -> None:
    assert large_number(number) == said
