"""``nas-hpc space``: search spaces of architectures, told and drawn."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nas_hpc.cli.context import Invocation, site_options, working_directory
from nas_hpc.cli.output import print_json, print_table
from nas_hpc.cli.report import find_directory
from nas_hpc.errors import WrongCall

if TYPE_CHECKING:
    from nas_hpc.nas import Architecture, SearchSpace

FORMATS = (".svg", ".png")
COLUMNS = 100
"""Operations of a node are listed so wide."""
_SEQUENCE = click.option(
    "--arch-seq", default=None, metavar="3,0,1", help="One architecture: what the variable nodes choose."
)


@click.group()
def space() -> None:
    """Show and draw the search space of a problem, or one architecture of it.

    \b
    Examples:
      nas-hpc space show nas_hpc.problems.nas.digits_dense.Problem
      nas-hpc space draw nas_hpc.problems.nas.digits_dense.Problem -o space.svg
    """


@site_options
@space.command("show")
@click.argument("problem")
@_SEQUENCE
@click.option("--json", "as_json", is_flag=True, help="The whole space, or architecture, as JSON.")
def show(problem: str, arch_seq: str | None, as_json: bool) -> None:
    """Print size, nodes and choices of a space; of an architecture shapes, parameters and FLOPs.

    \b
    Examples:
      nas-hpc space show nas_hpc.problems.nas.digits_dense.Problem
      nas-hpc space show mine.py --arch-seq 3,0,1 --json
    """
    found = load_space(problem)
    if arch_seq is not None:
        _show_architecture(found.architecture(parse_sequence(arch_seq)), as_json)
    elif as_json:
        print_json(
            {"size": found.size, "choices": found.choices, "outputs": found.outputs, **found.to_json()}
        )
    else:
        _show_space(found)


@site_options
@space.command("draw")
@click.argument("problem")
@_SEQUENCE
@click.option(
    "--best",
    multiple=True,
    metavar="WORKFLOW|PATH",
    help="The best architecture of the searches there; may be said several times.",
)
@click.option(
    "-o",
    "--output",
    default=None,
    metavar="FILE",
    help="FILE.svg or FILE.png. [default: space.svg, architecture.svg]",
)
@click.pass_obj
def draw(
    call: Invocation, problem: str, arch_seq: str | None, best: tuple[str, ...], output: str | None
) -> None:
    """Draw a space, or one architecture of it; prints the picture's path.

    \b
    Examples:
      nas-hpc space draw nas_hpc.problems.nas.digits_dense.Problem -o digits.png
      nas-hpc space draw mine.py --arch-seq 3,0,1
      nas-hpc space draw mine.py --best TEST -o best.svg
    """
    if arch_seq is not None and best:
        raise WrongCall("--arch-seq and --best are two ways to name an architecture: give one of them")
    one = arch_seq is not None or bool(best)
    target = _target(output or ("architecture.svg" if one else "space.svg"))
    found = load_space(problem)
    from nas_hpc.nas.drawing import draw_architecture, draw_space

    if one:
        sequence = best_sequence(call, best) if best else parse_sequence(arch_seq or "")
        figure = draw_architecture(found.architecture(sequence))
    else:
        figure = draw_space(found)
    _write(figure, target)
    print(target)


# -- what is shown -----------------------------------------------------------------------------------------
def _show_space(found: SearchSpace) -> None:
    from nas_hpc.nas.wording import does, large_number

    places = {node.name: place for place, node in enumerate(found.variable_nodes)}
    size = f"{len(places)} choice{'s' * (len(places) != 1)}, {large_number(found.size)} architectures"
    shapes = [", ".join(map(str, some)) for some in ([n.shape for n in found.inputs], found.output_shapes)]
    print(f"{size}; {shapes[0]} to {shapes[1]}")
    rows = [
        (
            places.get(node.name, "-"), node.name, "; ".join(does(node, COLUMNS)),
            ", ".join(found.inputs_of(node)) or "-",
        )
        for node in found.nodes
    ]  # fmt: skip
    print_table(["place", "node", "does", "after"], rows)


def _show_architecture(one: Architecture, as_json: bool) -> None:
    body = one.to_json()
    if as_json:
        print_json(body)
        return
    print(f"{one.parameters:,} parameters, {one.flops:,} FLOPs an example; sequence {one}")
    rows = [
        (
            part["name"], part.get("text", "input"), ", ".join(part["inputs"]) or "-",
            str(tuple(part["shape"])), f"{part.get('parameters', 0):,}", f"{part.get('flops', 0):,}",
        )
        for part in body["nodes"]
    ]  # fmt: skip
    print_table(["node", "does", "after", "shape", "parameters", "FLOPs"], rows)


# -- what is given -----------------------------------------------------------------------------------------
def load_space(path: str) -> SearchSpace:
    """The space of the problem at ``path``. Raises WrongCall."""
    here = str(working_directory())
    if here not in sys.path:  # as for the searches
        sys.path.insert(0, here)
    from nas_hpc.nas.data import check_problem
    from nas_hpc.nas.problem import load_na_problem

    return check_problem(load_na_problem(path))[0]


def parse_sequence(text: str) -> list[int]:
    """``3,0,1``, also with brackets and blanks, as a list. Raises WrongCall."""
    words = text.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
    try:
        return [int(word) for word in words]
    except ValueError:
        raise WrongCall(f"--arch-seq {text!r}: give whole numbers with commas, as in 3,0,1") from None


def best_sequence(call: Invocation, words: Sequence[str]) -> list[int]:
    """The sequence of the best evaluation in the workflows ``words``. Raises WrongCall."""
    from nas_hpc.analytics import summarize

    found = [summarize(find_directory(call, word)).best for word in words]
    evaluations = [one for one in found if one is not None]
    if not evaluations:
        raise WrongCall(f"--best {' '.join(words)}: there is no evaluation with an objective yet")
    best = max(evaluations, key=lambda one: one.objective)
    sequence = best.config.get("arch_seq")
    if not isinstance(sequence, list):
        raise WrongCall(
            f"--best: {best.name} in {best.directory or words[0]} has no arch_seq: give the workflow of a "
            "search of architectures"
        )
    return sequence


def _target(output: str) -> Path:
    target = working_directory() / output
    if target.suffix.lower() not in FORMATS:
        raise WrongCall(f"-o {output}: give a name that ends in .svg or .png")
    if not target.parent.is_dir():
        raise WrongCall(f"-o {output}: the directory {target.parent} does not exist; make it first")
    if target.is_dir():
        raise WrongCall(f"-o {output}: that is a directory; give the name of a file")
    return target


def _write(figure: Any, target: Path) -> None:
    from nas_hpc.files import replace_file
    from nas_hpc.nas.drawing import to_png, to_svg

    content = to_png(figure) if target.suffix.lower() == ".png" else to_svg(figure)
    try:
        replace_file(target, content, mode=0o644)
    except OSError as error:
        raise WrongCall(
            f"-o {target} cannot be written: {error.strerror or error}; give another with -o"
        ) from error
