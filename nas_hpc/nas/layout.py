"""Where the boxes of a directed acyclic graph stand in a picture, and how the lines between them run.

Boxes stand in rows, each below all that leads to it (Sugiyama, Tagawa and Toda, 1981). Lines that pass a row
take a place in it; those with one beginning run together until they part. Lengths are in points, y grows
downward.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

SWEEPS = 12
"""Times that the rows are put in order, and that their boxes are moved."""
ROW_GAP, BOX_GAP, LINE_GAP = 20.0, 14.0, 9.0
LINE_WIDTH = 2.0


@dataclass(frozen=True, slots=True)
class Box:
    """What is placed."""

    name: str
    width: float
    height: float
    late: bool = False
    """Stands right above what it leads to, instead of as high as it can."""


@dataclass(frozen=True, slots=True)
class Link:
    """A line to be drawn."""

    source: str
    target: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a line, from one row to the next."""

    start: tuple[float, float]
    end: tuple[float, float]
    optional: bool
    arrives: bool
    """It ends at a box."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The picture: centres of the boxes by name, and lines."""

    width: float
    height: float
    centers: Mapping[str, tuple[float, float]]
    segments: Sequence[Segment]


@dataclass(eq=False, slots=True)
class _Item:
    """A box in a row, or the place that a line takes in it."""

    row: int
    width: float
    height: float
    box: str = ""
    above: list[tuple[_Item, bool]] = field(default_factory=list)
    below: list[tuple[_Item, bool]] = field(default_factory=list)
    place: int = 0
    """In its row."""
    x: float = 0.0


def lay_out(boxes: Sequence[Box], links: Sequence[Link]) -> Layout:
    """Places for ``boxes`` so that every link goes down, with few crossings; links make no circle."""
    items, rows = _items(boxes, links)
    _put_in_order(rows)
    _move(rows)
    heights = [max(item.height for item in row) for row in rows]
    tops = [sum(heights[:number]) + number * ROW_GAP for number in range(len(rows))]
    left = min((item.x - item.width / 2 for row in rows for item in row), default=0.0)
    for row in rows:
        for item in row:
            item.x -= left
    middles = [top + height / 2 for top, height in zip(tops, heights, strict=True)]
    return Layout(
        width=max((item.x + item.width / 2 for row in rows for item in row), default=0.0),
        height=tops[-1] + heights[-1] if rows else 0.0,
        centers={name: (item.x, middles[item.row]) for name, item in items.items()},
        segments=list(_segments(rows, tops, heights)),
    )


def _segments(rows: Sequence[list[_Item]], tops: list[float], heights: list[float]) -> Iterable[Segment]:
    """Lines move aside between the rows alone, and go straight through a row to a box that is lower."""
    for item in itertools.chain.from_iterable(rows):
        top, bottom = tops[item.row], tops[item.row] + heights[item.row]
        half = (heights[item.row] - item.height) / 2
        for optional in dict.fromkeys(kind for _, kind in item.above):
            if not item.box:  # the line passes the row
                yield Segment((item.x, top), (item.x, bottom), optional, False)
            elif half:
                yield Segment((item.x, top), (item.x, top + half), optional, True)
        for optional in dict.fromkeys(kind for _, kind in item.below):
            if item.box and half:
                yield Segment((item.x, bottom - half), (item.x, bottom), optional, False)
        for lower, optional in item.below:
            arrives = bool(lower.box) and lower.height == heights[lower.row]
            yield Segment((item.x, bottom), (lower.x, tops[lower.row]), optional, arrives)


def _rows_of(boxes: Sequence[Box], links: Sequence[Link]) -> dict[str, int]:
    """The row of each box: the first that is below all that lead to it; for late ones the last."""
    rows = {box.name: 0 for box in boxes}
    for _ in boxes:
        changed = False
        for link in links:
            if rows[link.target] <= rows[link.source]:
                rows[link.target] = rows[link.source] + 1
                changed = True
        if not changed:
            break
    for box in sorted(boxes, key=lambda box: -rows[box.name]):
        following = [rows[link.target] for link in links if link.source == box.name]
        if box.late and following:
            rows[box.name] = min(following) - 1
    return rows


def _items(boxes: Sequence[Box], links: Sequence[Link]) -> tuple[dict[str, _Item], list[list[_Item]]]:
    """The boxes' items by name, and the rows, with places for the lines that pass them."""
    rows_of = _rows_of(boxes, links)
    items = {box.name: _Item(rows_of[box.name], box.width, box.height, box.name) for box in boxes}
    rows: list[list[_Item]] = [[] for _ in range(max(rows_of.values(), default=-1) + 1)]
    for item in items.values():
        rows[item.row].append(item)
    lines: dict[tuple[str, bool, int], _Item] = {}
    for link in links:
        upper, target = items[link.source], items[link.target]
        for row in range(upper.row + 1, target.row):
            key = (link.source, link.optional, row)
            if key not in lines:
                lines[key] = _Item(row, LINE_WIDTH, 0.0)
                rows[row].append(lines[key])
                _join(upper, lines[key], link.optional)
            upper = lines[key]
        _join(upper, target, link.optional)
    return items, rows


def _join(upper: _Item, lower: _Item, optional: bool) -> None:
    upper.below.append((lower, optional))
    lower.above.append((upper, optional))


def _put_in_order(rows: list[list[_Item]]) -> None:
    """Sort every row by the middle of what it is linked to, up and down in turn; keep the best order."""
    best: list[list[_Item]] = [list(row) for row in rows]
    fewest = _number(rows)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            wanted = {id(item): _middle(item, item.above if down else item.below) for item in row}
            row.sort(key=lambda item: wanted[id(item)])
            for place, item in enumerate(row):
                item.place = place
        crossings = _number(rows)
        if crossings < fewest:
            best, fewest = [list(row) for row in rows], crossings
    for row, kept in zip(rows, best, strict=True):
        row[:] = kept
    _number(rows)


def _middle(item: _Item, others: list[tuple[_Item, bool]]) -> float:
    return sum(one.place for one, _ in others) / len(others) if others else item.place


def _number(rows: list[list[_Item]]) -> int:
    """Give every item its place; returns how many lines cross."""
    for row in rows:
        for place, item in enumerate(row):
            item.place = place
    crossings = 0
    for row in rows:
        ends = [(item.place, lower.place) for item in row for lower, _ in item.below]
        crossings += sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a in ends for b in ends) // 2
    return crossings


def _move(rows: list[list[_Item]]) -> None:
    """Give every item its x: near what it is linked to, in its row's order."""
    for row in rows:
        _settle(row, [0.0] * len(row), [1.0] * len(row))
    for sweep in range(2 * SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            wanted, weights = [], []
            for item in row:
                pulls = [
                    (_pull(item, one, optional), one.x)
                    for one, optional in [*item.above, *item.below]
                    if (one.row < item.row) == down or sweep > SWEEPS
                ]
                total = sum(weight for weight, _ in pulls)
                wanted.append(sum(weight * x for weight, x in pulls) / total if pulls else item.x)
                weights.append(total or 0.1)
            _settle(row, wanted, weights)


def _pull(item: _Item, other: _Item, optional: bool) -> float:
    """How much two items want to stand below each other."""
    if not item.box and not other.box:
        return 4.0
    return 0.3 if optional else 30.0


def _settle(row: list[_Item], wanted: Sequence[float], weights: Sequence[float]) -> None:
    """Move ``row`` to ``wanted`` with the least squares of the differences that keep order and distances
    (pool adjacent violators)."""
    offsets = [0.0]
    for left, right in zip(row, row[1:], strict=False):
        gap = BOX_GAP if left.box and right.box else LINE_GAP
        offsets.append(offsets[-1] + (left.width + right.width) / 2 + gap)
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many
    for place, offset, weight in zip(wanted, offsets, weights, strict=False):
        mean, total, count = place - offset, weight, 1
        while blocks and blocks[-1][0] >= mean:
            other, heavier, more = blocks.pop()
            mean = (mean * total + other * heavier) / (total + heavier)
            total, count = total + heavier, count + more
        blocks.append((mean, total, count))
    settled = [mean for mean, _, count in blocks for _ in range(count)]
    for item, mean, offset in zip(row, settled, offsets, strict=False):
        item.x = mean + offset
