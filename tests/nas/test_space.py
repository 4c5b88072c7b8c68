"""Search spaces: what they refuse, what an architecture of them is, and their JSON form."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_hpc.errors import WrongCall
from nas_hpc.nas import (
    Architecture,
    ConstantNode,
    MimeNode,
    MirrorNode,
    SearchSpace,
    VariableNode,
    check_space,
)
from nas_hpc.nas.operations import (
    AddByPadding,
    AddByProjecting,
    BatchNormalization,
    Concatenate,
    Connect,
    Conv2D,
    Dense,
    Flatten,
    Identity,
    Operation,
    Zero,
)
from tests.nas.spaces import dense_space, image_space, sequences, vector_spaces
from tests.support import examples

ROOT = str(Path(__file__).resolve().parents[2])


def chain(*operations: Operation | list[Operation], out: int = 2) -> SearchSpace:
    """Nodes one after the other, a list being a choice, after inputs of shape (4,)."""
    space = SearchSpace((4,), (out,))
    before: Any = space.inputs[0]
    for number, op in enumerate(operations):
        node = VariableNode(f"v{number}", op) if isinstance(op, list) else ConstantNode(op, f"c{number}")
        space.connect(before, node)
        before = node
    return space


# -- what is refused -----------------------------------------------------------------------------------
CHOICE: list[Operation] = [Identity(), Dense(3)]


def circle_by_connect() -> None:
    space = chain(CHOICE, Dense(2))
    first, last = space.nodes[1:]
    first.add_op(Connect(last))  # type: ignore[attr-defined]
    check_space(space)


def two_connects_that_close_a_circle() -> None:
    """Each alone is none: no architecture of one changed choice has it."""
    space = SearchSpace((4,), (4,))
    one = VariableNode("one", [Zero(), Connect("two")])
    two = VariableNode("two", [Zero(), Connect("one")])
    end = ConstantNode(AddByProjecting(), "end")
    for node in (space.inputs[0], one, two):
        space.connect(node, end)
    check_space(space, samples=0)


def nothing_leads_to() -> None:
    space = chain(CHOICE, Concatenate(), Dense(2))
    space.connect(VariableNode("lonely", [Dense(1), Dense(2)]), space.nodes[2])
    check_space(space)


def unused_input() -> None:
    space = SearchSpace([(4,), (3,)], (2,))
    space.connect(space.inputs[0], VariableNode("v", [Dense(2), Dense(2, "relu")]))
    check_space(space)


def two_ends() -> None:
    space = chain(CHOICE, Dense(2))
    space.connect(space.nodes[1], ConstantNode(Dense(2), "other"))
    check_space(space)


def wider_mirror() -> None:
    space = chain(Dense(3), CHOICE)
    space.connect(space.inputs[0], mirror := MirrorNode(space.nodes[2], "mirror"))
    for node in (mirror, space.nodes[2]):
        space.connect(node, space._nodes.get("end") or ConstantNode(Concatenate(), "end"))
    space.connect(space._nodes["end"], ConstantNode(Dense(2), "out"))
    check_space(space)


def absent_output() -> None:
    check_space(chain([Identity(), Zero()], Dense(2)))


def connect_beside_an_input() -> None:
    space = chain(Dense(3), [Identity(), Connect("input_0")], Dense(2))
    check_space(space)


def mirror_of_another_space() -> None:
    other = chain(CHOICE)
    space = chain(CHOICE)
    space.connect(space.inputs[0], MirrorNode(other.nodes[1]))


class Unbuilt(Operation):
    """An operation of one's own that is not done."""


def inner_operation() -> Operation:
    class Inner(Operation):
        def build(self, tensors: Any, make: Any) -> Any:
            return tensors[0]

    return Inner()


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no variable node": (
        lambda: check_space(chain(Dense(2))),
        "the search space has no variable node: nothing is left to be searched",
    ),
    "one operation": (
        lambda: check_space(chain([Dense(2)])),
        "the variable node v0 has one operation, Dense(2): add others, or make it a ConstantNode",
    ),
    "no operation": (
        lambda: check_space(chain([])),
        "the variable node v0 has no operation: add others, or make it a ConstantNode",
    ),
    "a wrong rank": (
        lambda: check_space(chain([Dense(3), Conv2D(3, 3)], Dense(2))),
        "node v0 of the architecture [1]: Conv2D(3, 3) takes inputs of rank 3 (without the batch), and this "
        "one has rank 1: (4,)",
    ),
    "another output shape": (
        lambda: check_space(chain(CHOICE, [Dense(2), Dense(3)])),
        "the architecture [0, 1] has the output shape (3,), and the space is for (2,)",
    ),
    "several inputs for one": (
        lambda: [
            (space := chain(CHOICE, CHOICE, Dense(2))).connect(space.inputs[0], space.nodes[2]),
            check_space(space),
        ],
        "node v1 of the architecture [0, 0]: Identity takes one input, and here are 2: put Concatenate or "
        "AddByProjecting before it",
    ),
    "a circle by connect": (
        lambda: (space := chain(CHOICE, CHOICE)).connect(space.nodes[2], space.nodes[1]),
        "connecting VariableNode(v1) to VariableNode(v0) closes a circle",
    ),
    "a node behind itself": (
        lambda: (space := chain(CHOICE)).connect(space.nodes[1], space.nodes[1]),
        "connecting VariableNode(v0) to VariableNode(v0) closes a circle",
    ),
    "a circle by an operation": (
        circle_by_connect,
        "the nodes v0, c1 wait for each other: take a connection out",
    ),
    "a circle of two choices": (
        two_connects_that_close_a_circle,
        "the nodes one, two wait for each other: take a connection out",
    ),
    "a node that waits for itself": (
        lambda: check_space(chain([Dense(2), Connect("v0")])),
        "the node v0 is connected to itself: take that connection out",
    ),
    "an operation without build": (
        lambda: check_space(chain([Dense(2), Unbuilt()])),
        "node v0: the operation Unbuilt has no build(): write that method",
    ),
    "an operation of a function": (
        lambda: check_space(chain([Dense(2), inner_operation()])),
        "node v0: the operation Inner is a class inside a function, where no other process finds",
    ),
    "an operation for a list": (
        lambda: VariableNode("v", Dense(2)),  # type: ignore[arg-type]
        "VariableNode(v): give a list of operations, such as [Dense(2), ...]",
    ),
    "nothing leads to a node": (
        nothing_leads_to,
        "nothing is connected to the node lonely: connect something, or leave it out",
    ),
    "an unused input": (unused_input, "the input input_1 of the space is connected to nothing: connect it"),
    "two ends": (
        two_ends,
        "the space has 2 nodes that no node follows (c1, other), and its output_shape is for 1: give each "
        "output its shape",
    ),
    "an absent output": (
        absent_output,
        "the architecture [1]: nothing is connected to its output c1",
    ),
    "a mirror on a wider input": (
        wider_mirror,
        "node v1 of the architecture [0]: it shares the weights of mirror, whose inputs have other ranks or "
        "last dimensions: (3,) here, (4,) there",
    ),
    "connect beside an input": (
        connect_beside_an_input,
        "Connect(input_0) is the only input of its node: connect nothing else to it",
    ),
    "an operation in a node of connections": (
        lambda: (
            (space := chain(CHOICE, Concatenate(), Dense(2))).connect(
                VariableNode("skip", [Identity(), Connect("input_0")]), space.nodes[2]
            )
            or check_space(space)
        ),
        "the node skip has no input but by Connect, so that Identity would be without one: give Zero()",
    ),
    "connect to what is nowhere": (
        lambda: check_space(chain(CHOICE, [Dense(2), Connect("gone")])),
        "the node v1 has Connect(gone), and the space has no node 'gone': connect it first",
    ),
    "connect to an unnamed node": (
        lambda: Connect(VariableNode()),
        "Connect(VariableNode(unnamed)): give a node that has a name, or was brought into the space before",
    ),
    "connected twice": (
        lambda: (space := chain(CHOICE)).connect(space.inputs[0], space.nodes[1]),
        "InputNode(input_0) is connected to VariableNode(v0) already",
    ),
    "into an input": (
        lambda: (space := chain(CHOICE)).connect(space.nodes[1], space.inputs[0]),
        "InputNode(input_0) is an input of the space: nothing is connected to it",
    ),
    "one name twice": (
        lambda: (space := chain(CHOICE)).connect(space.inputs[0], VariableNode("v0")),
        "two nodes are named 'v0': give each its own name",
    ),
    "a mirror of another space": (mirror_of_another_space, "which is not in this space: connect it first"),
    "a mirror of an input": (
        lambda: MirrorNode(SearchSpace((4,), (2,)).inputs[0]),
        "MirrorNode of InputNode(input_0): give a node that has an operation",
    ),
    "a mime of a constant": (
        lambda: MimeNode(ConstantNode(Dense(1), "c")),  # type: ignore[arg-type]
        "MimeNode of ConstantNode(c): give a VariableNode",
    ),
    "no node": (
        lambda: SearchSpace((4,), (2,)).connect("input_0", VariableNode()),  # type: ignore[arg-type]
        "'input_0' is no node: give a VariableNode, ConstantNode, MirrorNode or MimeNode",
    ),
    "a class for an operation": (
        lambda: VariableNode("v").add_op(Identity),  # type: ignore[arg-type]
        "VariableNode(v): the class Identity is no operation: give one such as Dense(16, 'relu')",
    ),
    "a slash in a name": (lambda: VariableNode("a/b"), "give a line without slashes and outer blanks"),
    "two lines in a name": (
        lambda: VariableNode("a\nb"),
        "VariableNode: the name 'a\\nb': give a line",
    ),
    "an empty shape": (lambda: SearchSpace((), (2,)), "the input shape () is empty: give one such as (64,)"),
    "a number for a shape": (
        lambda: SearchSpace(64, (2,)),  # type: ignore[arg-type]
        "the input shape 64 is none: give one such as (64,), without the batch",
    ),
    "the batch in a shape": (
        lambda: SearchSpace((None, 64), (2,)),  # type: ignore[arg-type]
        "the input shape (None, 64) is none",
    ),
    "a length of zero": (
        lambda: SearchSpace((4,), (0,)),
        "the output shape (0,) is none: give whole numbers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_space_is_refused_in_one_line(name: str) -> None:
    call, said = REFUSED[name]
    with pytest.raises(WrongCall) as caught:
        call()
    assert said in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("sequence", "said"),
    [
        ([0], "the sequence [0] has 1 numbers, and the space 2 variable nodes: give one number for each"),
        ([0, 1, 0], "has 3 numbers, and the space 2 variable nodes"),
        ([0, 2], "the sequence [0, 2]: 2 is no choice of v1, which has 2 operations: give 0 to 1"),
        ([-1, 0], "-1 is no choice of v0"),
        ([0.5, 0], "0.5 is no choice of v0"),
        ([True, 0], "True is no choice of v0"),
        (["1", 0], "'1' is no choice of v0"),
        ([None, 0], "None is no choice of v0"),
        ([float("nan"), 0], "nan is no choice of v0"),
        ("01", "the sequence '01' is none: give a list of 2 whole numbers"),
        (1, "the sequence 1 is none: give a list of 2 whole numbers"),
        (None, "the sequence None is none"),
        ({"0": 1, "1": 0}, "is none: give a list of 2 whole numbers"),
    ],
)
def test_a_sequence_that_is_none_is_refused_in_one_line(sequence: Any, said: str) -> None:
    space = chain(CHOICE, CHOICE, Dense(2))
    for call in (space.check, space.architecture):
        with pytest.raises(WrongCall) as caught:
            call(sequence)
        assert said in caught.value.message


@pytest.mark.parametrize("given", [(1, 0), np.array([1, 0]), [np.int64(1), 0.0]])
def test_whole_numbers_of_every_kind_are_a_sequence(given: Any) -> None:
    checked = chain(CHOICE, CHOICE, Dense(2)).architecture(given).sequence
    assert checked == (1, 0)
    assert [type(number) for number in checked] == [int, int]


# -- what an architecture is --------------------------------------------------------------------------
def test_size_is_the_product_of_the_choices_and_the_sequence_has_the_order_of_coming_in() -> None:
    space = dense_space(layers=2)
    assert space.choices == [25, 2, 25, 2, 2]
    assert space.size == 25 * 2 * 25 * 2 * 2
    one = space.architecture([1, 0, 24, 1, 0])
    said = {part.name: str(part.operation) for part in one.parts}
    assert (said["dense_0"], said["dense_1"]) == ("Dense(16, relu)", "Dense(96, linear)")


def test_a_chosen_connection_is_an_input_more_and_another_one_is_absent() -> None:
    space = dense_space(layers=2)
    skip = space.variable_nodes[3].name
    none, there = ({part.name: part for part in space.architecture([1, 0, 2, n, 0]).parts} for n in (0, 1))
    assert none["merge_1"].inputs == ("dense_1",)
    assert skip not in none
    assert there["merge_1"].inputs == ("dense_1", skip)
    assert there[skip].inputs == ("input_0",)


def test_what_leads_to_no_output_is_no_part_and_has_no_parameters() -> None:
    space = chain(CHOICE, Concatenate(), Dense(2))
    side = ConstantNode(Dense(7), "side")
    space.connect(space.inputs[0], side)
    space.connect(VariableNode("skip", [Zero(), Connect(side)]), space.nodes[2])
    without, with_it = space.architecture([0, 0]), space.architecture([0, 1])
    assert "side" not in {part.name for part in without.parts}
    assert without.parameters == (4 + 1) * 2
    assert with_it.parameters == (4 + 1) * 7 + (4 + 7 + 1) * 2
    assert without.outputs == with_it.outputs == ("c2",)


def test_a_node_without_present_inputs_is_absent_and_so_is_what_follows_it_alone() -> None:
    space = chain(CHOICE, Concatenate(), Dense(2))
    zero = VariableNode("zero", [Zero(), Dense(5)])
    space.connect(space.inputs[0], zero)
    space.connect(zero, behind := ConstantNode(Dense(3), "behind"))
    space.connect(behind, space.nodes[2])
    assert {part.name for part in space.architecture([0, 0]).parts} == {"input_0", "v0", "c1", "c2"}
    assert space.architecture([0, 1]).shapes["c1"] == (4 + 3,)


def test_a_mirror_shares_weights_and_a_mime_has_its_own() -> None:
    sizes = {}
    for kind in (MirrorNode, MimeNode):
        space = chain([Dense(3), Dense(5), BatchNormalization()])
        choice = space.variable_nodes[0]
        space.connect(space.inputs[0], other := kind(choice, "other"))
        end = ConstantNode(Concatenate(), "end")
        for node in (choice, other):
            space.connect(node, end)
        space.connect(end, ConstantNode(Dense(2), "out"))
        one = space.architecture([1])
        sizes[kind] = one.parameters
        assert one.shapes["end"] == (10,)
        assert one.flops == 2 * (2 * 4 + 1) * 5 + (2 * 10 + 1) * 2
    assert sizes == {MirrorNode: 25 + 22, MimeNode: 2 * 25 + 22}


def test_a_mirror_has_the_weights_itself_where_the_other_node_is_absent() -> None:
    space = chain([Dense(3), Dense(5)])
    choice = space.variable_nodes[0]
    space.connect(space.inputs[0], mirror := MirrorNode(choice, "mirror"))
    skip = VariableNode("skip", [Zero(), Connect(choice)])
    end = ConstantNode(Concatenate(), "end")
    space.connect(mirror, end)
    space.connect(skip, end)
    space.connect(end, ConstantNode(Dense(2), "out"))
    check_space(space)
    alone, both = space.architecture([0, 0]), space.architecture([0, 1])
    assert {part.name: part.shares for part in alone.parts}["mirror"] == ""
    assert alone.parameters == 15 + 8
    assert both.parameters == 15 + 14
    assert {part.shares for part in both.parts} == {"", both.parts[1].name}


def test_several_inputs_and_outputs_keep_their_order() -> None:
    space = SearchSpace([(4,), (8, 8, 1)], [(2,), (3,)])
    space.connect(space.inputs[1], flat := ConstantNode(Flatten(), "flat"))
    both = VariableNode("both", [Concatenate(), AddByProjecting(), AddByPadding("relu")])
    space.connect(flat, both)
    space.connect(space.inputs[0], both)
    space.connect(both, ConstantNode(Dense(2), "first"))
    space.connect(both, ConstantNode(Dense(3), "second"))
    check_space(space)
    shapes = [space.architecture([n]).shapes["both"] for n in range(3)]
    assert shapes == [(68,), (64,), (64,)]
    assert space.architecture([0]).outputs == ("first", "second")


@settings(max_examples=examples(60), deadline=None)
@given(st.data())
def test_every_architecture_of_random_spaces_is_whole_and_ordered(data: st.DataObject) -> None:
    space = data.draw(vector_spaces())
    one = space.architecture(data.draw(sequences(space)))
    seen: set[str] = set()
    for part in one.parts:
        assert set(part.inputs) <= seen
        assert bool(part.inputs) != (part.operation is None)
        assert part.shares in {"", *seen}
        seen.add(part.name)
    used = {name for part in one.parts for name in part.inputs}
    assert all(part.name in used or part.name in one.outputs or part.operation is None for part in one.parts)
    assert [one.shapes[name] for name in one.outputs] == [(2,)]


# -- JSON -----------------------------------------------------------------------------------------------
@settings(max_examples=examples(60), deadline=None)
@given(st.data())
def test_spaces_and_architectures_survive_json(data: st.DataObject) -> None:
    space = data.draw(vector_spaces())
    body = json.loads(json.dumps(space.to_json()))
    again = SearchSpace.from_json(body)
    assert again.to_json() == body
    sequence = data.draw(sequences(space))
    one = space.architecture(sequence)
    assert again.architecture(sequence) == one
    read = Architecture.from_json(json.loads(json.dumps(one.to_json())))
    assert read == one
    assert read.to_json() == one.to_json()
    assert (read.parameters, read.flops) == (one.parameters, one.flops)


@pytest.mark.slow
def test_the_json_form_is_the_same_in_every_process() -> None:
    code = (
        "import json; from tests.nas.spaces import dense_space, image_space; "
        "print(json.dumps([dense_space().to_json(), image_space().to_json()]))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "1", "PYTHONPATH": ROOT}, capture_output=True,
        check=True,
    ).stdout  # fmt: skip
    assert json.loads(said) == [dense_space().to_json(), image_space().to_json()]


def test_the_json_form_is_the_one_that_is_written_down() -> None:
    space = SearchSpace((4,), (2,))
    space.connect(space.inputs[0], choice := VariableNode("v", [Identity(), Dense(3, "relu")]))
    space.connect(choice, ConstantNode(Dense(2), "out"))
    assert space.to_json() == {
        "version": 1,
        "input_shapes": [[4]],
        "output_shapes": [[2]],
        "nodes": [
            {
                "name": "v", "kind": "variable", "inputs": ["input_0"],
                "ops": [{"op": "Identity"}, {"op": "Dense", "units": 3, "activation": "relu"}],
            },
            {"name": "out", "kind": "constant", "inputs": ["v"],
             "op": {"op": "Dense", "units": 2, "activation": ""}},
        ],
    }  # fmt: skip
    assert space.architecture([1]).to_json() == {
        "version": 1, "arch_seq": [1], "parameters": 23, "flops": 41, "outputs": ["out"],
        "nodes": [
            {"name": "input_0", "inputs": [], "shape": [4]},
            {"name": "v", "inputs": ["input_0"], "op": {"op": "Dense", "units": 3, "activation": "relu"},
             "text": "Dense(3, relu)", "chosen": True, "parameters": 15, "flops": 27, "shape": [3]},
            {"name": "out", "inputs": ["v"], "op": {"op": "Dense", "units": 2, "activation": ""},
             "text": "Dense(2)", "chosen": False, "parameters": 8, "flops": 14, "shape": [2]},
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2}, {"nodes": None}, {"nodes": [{}]}, {"input_shapes": [4]}, {"nodes": [{"name": "v"}]},
        {"nodes": [{"name": "v", "kind": "variable", "inputs": ["nowhere"], "ops": []}]},
        {"nodes": [{"name": "v", "kind": "variable", "inputs": [], "ops": [{"op": "Dance"}]}]},
        {"nodes": [{"name": "v", "kind": "variable", "inputs": [], "ops": [{"op": "Dense", "unit": 3}]}]},
    ],
)  # fmt: skip
def test_json_that_is_no_space_is_refused_in_one_line(change: dict[str, Any]) -> None:
    with pytest.raises(WrongCall) as caught:
        SearchSpace.from_json({**chain(CHOICE, Dense(2)).to_json(), **change})
    assert "\n" not in caught.value.message


def test_json_that_is_no_architecture_is_refused_in_one_line() -> None:
    body = chain(CHOICE, Dense(2)).architecture([1]).to_json()
    for change in ({"version": 0}, {"nodes": [{"name": "v"}]}, {"outputs": ["gone"]}, {"nodes": 3}):
        with pytest.raises(WrongCall) as caught:
            Architecture.from_json({**body, **change})
        assert "\n" not in caught.value.message


# -- sampling -------------------------------------------------------------------------------------------
def test_a_sample_is_a_sequence_and_its_generator_alone_decides_which() -> None:
    space = dense_space()
    one, same = (space.sample(np.random.default_rng(7)) for _ in range(2))
    assert space.check(one) == one == same
    rng = np.random.default_rng(0)
    drawn = Counter(space.sample(rng)[0] for _ in range(2500))
    assert set(drawn) == set(range(25))
    assert max(drawn.values()) < 2 * min(drawn.values())  # each 100 times, standard deviation 10


def test_an_operation_that_fits_nowhere_is_found_in_a_space_of_30_nodes() -> None:
    space = dense_space(layers=30)
    [layer] = [node for node in space.variable_nodes if node.name == "dense_17"]
    layer.ops[-1] = Conv2D(3, 3)
    said = r"^node dense_17 of the architecture \[(0, )+24(, 0)+\]: Conv2D\(3, 3\) takes inputs of rank 3"
    with pytest.raises(WrongCall, match=said):
        check_space(space)


@settings(max_examples=examples(40), deadline=None)
@given(st.data())
def test_a_wrong_operation_is_found_wherever_it_is(data: st.DataObject) -> None:
    space = data.draw(vector_spaces())
    if not space.variable_nodes:
        return
    node = data.draw(st.sampled_from(space.variable_nodes))
    node.ops[data.draw(st.integers(0, len(node.ops) - 1))] = Conv2D(3, 3)
    with pytest.raises(WrongCall, match="node |operation"):
        check_space(space)


def test_the_spaces_of_these_tests_are_spaces() -> None:
    for space in (dense_space(), image_space()):
        check_space(space, samples=200)


# -- beside Keras -----------------------------------------------------------------------------------------
def shapes_and_size_agree(one: Architecture) -> None:
    from nas_hpc.nas.model import build_model

    model = build_model(one, seed=0)
    outputs = model.outputs
    assert [tuple(out.shape[1:]) for out in outputs] == [one.shapes[name] for name in one.outputs]
    assert model.count_params() == one.parameters
    given = [np.ones((2, *part.shape), "float32") for part in one.parts if part.operation is None]
    found = model(given if len(given) > 1 else given[0])
    assert np.isfinite(np.asarray(found)).all()


@pytest.mark.slow
@pytest.mark.extra("tensorflow")
@settings(max_examples=examples(40), deadline=None)
@given(st.data())
def test_architectures_of_random_spaces_have_the_shapes_and_parameters_of_their_keras_models(
    data: st.DataObject,
) -> None:
    space = data.draw(vector_spaces())
    shapes_and_size_agree(space.architecture(data.draw(sequences(space))))


@pytest.mark.slow
@pytest.mark.extra("tensorflow")
def test_every_operation_on_images_in_a_network_with_mirror_and_mime_has_the_size_of_its_keras_model() -> (
    None
):
    space = image_space()
    for cell in range(9):
        shapes_and_size_agree(space.architecture([cell, cell % 4, cell % 2]))
