"""Whether a search could begin: its flags, its problem, its run function. Runs as a process of its own.

``python -m nas_hpc.cli.check_search KIND MODE MODULE FLAG…`` loads the user's modules as the search will, so
that nothing of them is in the process that asks. Exit 0, or 2 after a line ``MARK message`` on stderr.
"""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from nas_hpc.errors import NasHpcError, WrongCall

MARK = "nas-hpc-check:"
HPS, NAS = "hps", "nas"
"""Kinds of searches, as the commands call them."""
_OBJECTS = "-"
"""In the place of the kind: only problem and run function are loaded, whatever the search is."""
_SPACE = "space"
"""In its place: the space of a search of trials, and whether an algorithm can search it."""
_TASKS = "tasks"
"""In its place: the proxy tasks that a generator makes."""
SERIAL, _ANY_MODE = "serial", "-"
LIMIT_S = 300.0
"""Importing a training library from a busy file system may take minutes; more than this is a hang."""


def check_search(module: str, words: Sequence[str], *, architectures: bool, serial: bool = False) -> None:
    """Raise WrongCall if the search ``module`` with the flags ``words`` could not begin, or is not one of
    architectures, or of hyperparameters; or if its evaluations have several ranks, and the launcher is to run
    in ``serial`` mode."""
    _ask([NAS if architectures else HPS, SERIAL if serial else _ANY_MODE, module, *words])


def check_objects(problem: str, run: str) -> None:
    """Raise WrongCall if there is nothing at ``problem``, or no function of one argument at ``run``."""
    _ask([_OBJECTS, _ANY_MODE, "", problem, run])


def check_space(space: str, algorithm: str, total: int, *, least: int = 0) -> None:
    """Raise WrongCall if there is no search space at ``space``, ``algorithm`` cannot search it in ``total``
    trials, or it has fewer than ``least`` models."""
    _ask([_SPACE, _ANY_MODE, "", space, algorithm, str(total), str(least)])


def check_tasks(generator: str, baseline: Mapping[str, str], directory: str) -> None:
    """Raise WrongCall if the generator of proxy tasks gives none that can be tried with the flags
    ``baseline``, or another one under the name of one that was tried in ``directory``."""
    _ask([_TASKS, _ANY_MODE, "", generator, json.dumps(dict(baseline)), directory])


def _ask(words: Sequence[str]) -> None:
    what = {_SPACE: "the search space", _TASKS: "the proxy task config generator"}.get(
        words[0], "the problem and the run function"
    )
    argv = [sys.executable, "-m", __name__, *words]
    try:
        done = subprocess.run(
            argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise WrongCall(
            f"loading {what} took more than {LIMIT_S:g} s; let its module do less when it is imported"
        ) from None
    if done.returncode == 0:
        return
    lines = done.stderr.decode(errors="replace").splitlines()
    told = [line.removeprefix(MARK).strip() for line in lines if line.startswith(MARK)]
    if told:
        raise WrongCall(told[-1])
    code = done.returncode
    how = f"exit code {code}" if code > 0 else f"signal {-code} ({signal.strsignal(-code)})"
    said = f", its last words: {lines[-1]}" if lines else ""
    raise WrongCall(
        f"loading {what} ended the process with {how}{said}; "
        "correct what is done there when it is imported or called"
    )


def _check(kind: str, mode: str, module: str, words: Sequence[str]) -> None:
    import click

    from nas_hpc.apps.architectures import check_libraries, load_searched
    from nas_hpc.apps.flags import take_options
    from nas_hpc.apps.functions import locate_run_function, resolve_file
    from nas_hpc.apps.ranks import check_mode, check_way, shape_of
    from nas_hpc.loading import load_object

    if kind == _SPACE:
        from nas_hpc.apps.proxy.rounds import sample
        from nas_hpc.apps.trials.space import load_space

        space, algorithm, total, least = words
        found = load_space(space)
        found.optimizer(algorithm, 0, int(total))
        sample(found, 0, int(least))
        return
    if kind == _TASKS:
        from nas_hpc.apps.proxy.generator import check_known, make_tasks

        generator, baseline, directory = words
        tasks = make_tasks(generator, json.loads(baseline))
        if directory:
            check_known(directory, tasks)
        return
    if kind == _OBJECTS:
        problem, run = words
        load_object(resolve_file(problem), "problem", "Problem")
        locate_run_function(run)
        return
    program = importlib.import_module(module)
    [command] = [value for value in vars(program).values() if isinstance(value, click.Command)]
    try:
        flags = command.make_context(module, list(words)).params
    except click.ClickException as error:
        raise WrongCall(
            f"{error.format_message().rstrip('.')}; the search's flags: python -m {module} --help"
        ) from error
    options = take_options(dict(flags))
    searched = load_searched(options.problem)
    _check_kind(kind, options.problem, searched.space is not None)
    shape = shape_of(options, searched.resources)
    check_mode(options.problem, shape, serial=mode == SERIAL)
    if hasattr(program, "check_flags"):
        program.check_flags(flags, searched)
    run = locate_run_function(options.run)
    check_libraries(run)
    check_way(run, shape, options.eval_environ or {})


def _check_kind(kind: str, problem: str, architectures: bool) -> None:
    if kind == HPS and architectures:
        raise WrongCall(f"problem {problem!r} is one of architectures: give it to {NAS} instead of {HPS}")
    if kind == NAS and not architectures:
        raise WrongCall(f"problem {problem!r} is one of hyperparameters: give it to {HPS} instead of {NAS}")


def _main() -> int:
    try:
        _check(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
    except NasHpcError as error:
        print(f"\n{MARK} {' '.join(error.message.split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())
