"""Finding a user's run function without running his module.

A run function's module often loads a training library: seconds, gigabytes, and a GPU opened in a process that
trains nothing. So its source is read first; only what the source does not settle is imported.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

from nas_hpc.loading import load_callable


def locate_run_function(path: str) -> str:
    """Check that ``path`` names a function of one argument; returns the path for the evaluations' processes.

    A file's path becomes absolute, because evaluations run in directories of their own.
    Raises WrongCall as ``nas_hpc.loading.load_callable`` does.
    """
    if ".py" not in path:
        if not _defines(path):
            load_callable(path)
        return path
    file, _, name = path.partition(":")
    absolute = f"{Path(file).expanduser().resolve()}:{name or 'run'}"
    if not _source_defines(Path(absolute.rpartition(":")[0]), name or "run"):
        load_callable(absolute)
    return absolute


def _defines(path: str) -> bool:
    module, _, name = path.replace(":", ".").rpartition(".")
    if not module or module == "__main__" or module in sys.modules:
        return False
    try:
        spec = importlib.util.find_spec(module)
    except Exception:
        return False  # the import says it better
    return spec is not None and spec.origin is not None and _source_defines(Path(spec.origin), name)


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
