"""Finding a user's run function without running his module, or his job specification.

A run function's module often loads a training library: seconds, gigabytes, and a GPU opened in a process that
trains nothing. So its source is read first; only what the source does not settle is imported.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.loading import load_callable
from nas_hpc.specification import is_job_specification


def resolve_file(path: str) -> str:
    """``path`` with its file, if it names one, made absolute; a dotted name as it is.

    A search runs in its job's directory: a relative file is looked for there, then along the module search
    path, on which the directory stands from which the job was submitted.
    """
    file, colon, name = path.partition(":")
    if not file.endswith(".py"):
        return path
    relative = Path(file).expanduser()
    places = [Path.cwd(), *(Path(entry) for entry in sys.path if entry)]
    found = next((place / relative for place in places if (place / relative).is_file()), relative)
    return f"{found.resolve()}{colon}{name}"


def locate_run_function(path: str) -> str:
    """Check that ``path`` names a function of one argument; returns it as "module.function".

    Evaluations are processes with the same module search path; so a file must be a module there too.
    Raises WrongCall as ``nas_hpc.loading.load_callable`` does.
    """
    return find_function(path)[0]


def find_function(path: str) -> tuple[str, Callable[..., Any] | None]:
    """("module.function", None) of a run function, as ``locate_run_function``; of a job specification, which
    this process calls, the function, too."""
    resolved = resolve_file(path)
    file, _, name = resolved.partition(":")
    if not file.endswith(".py"):
        dotted = path.replace(":", ".") if path.count(":") == 1 else path
    elif Path(file).is_file():
        dotted = f"{_module_of(Path(file), path)}.{name or 'run'}"
    else:
        dotted = resolved  # what follows says that there is none
    if _defines(dotted):
        return dotted, None  # a specification is decorated: the source alone does not settle what it is
    found = load_callable(dotted)
    return dotted, found if is_job_specification(found) else None


def _module_of(file: Path, path: str) -> str:
    """The name by which a process with this one's module search path imports ``file``."""
    for entry in sys.path:
        try:
            parts = file.relative_to(Path(entry or ".").resolve()).with_suffix("").parts
        except ValueError:
            continue
        name = ".".join(parts)
        if all(part.isidentifier() for part in parts) and _origin(name) == file:
            return name
    raise WrongCall(
        f"run function {path!r}: {file.parent} is not on the module search path, where evaluations look: "
        "submit the job from that directory, or add it to PYTHONPATH"
    )


def _origin(module: str) -> Path | None:
    """The file from which ``module`` would be imported."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception:
        return None  # the import says it better
    return None if spec is None or spec.origin is None else Path(spec.origin).resolve()


def _defines(path: str) -> bool:
    """Whether the source of "module.function" alone says that it is one."""
    module, _, name = path.rpartition(".")
    if not module or module == "__main__" or module in sys.modules:
        return False
    origin = _origin(module)
    return origin is not None and _source_defines(origin, name)


def _source_defines(file: Path, name: str) -> bool:
    """Whether ``name`` is bound at the top of ``file`` once, by a plain ``def`` that one argument
    satisfies."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False
    bindings = [node for node in tree.body if _binds(node, name)]
    if len(bindings) != 1 or not isinstance(bindings[0], ast.FunctionDef) or bindings[0].decorator_list:
        return False
    arguments = bindings[0].args
    positional = arguments.posonlyargs + arguments.args
    required = len(positional) - len(arguments.defaults)
    keywords_free = all(default is not None for default in arguments.kw_defaults)
    return keywords_free and required <= 1 and (len(positional) >= 1 or arguments.vararg is not None)


def _binds(node: ast.stmt, name: str) -> bool:
    """Whether ``node`` may bind ``name``; anything but a definition or an import counts if the name is stored
    in it."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name == name
    for inner in ast.walk(node):
        if isinstance(inner, ast.alias) and name in ((inner.asname or inner.name).split(".")[0], "*"):
            return True
        if isinstance(inner, ast.alias) and inner.name == "*":
            return True
        if isinstance(inner, ast.Name) and inner.id == name and not isinstance(inner.ctx, ast.Load):
            return True
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and inner.name == name:
            return True
    return False
