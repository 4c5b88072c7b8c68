"""Loading of users' objects by name: whatever goes wrong is one line that says what would be right."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from nas_hpc.errors import WrongCall


def load_callable(path: str, what: str = "run function", example: str = "run(config)") -> Callable[..., Any]:
    """The function at ``path`` (forms as in ``load_problem``; in a file the default name is that of
    ``example``, which errors show).

    It must take one positional argument (the configuration or the job) and not live in ``__main__``.
    """
    name = example.partition("(")[0]
    found = load_object(path, what, name)
    if isinstance(found, ModuleType):
        raise WrongCall(f"{what} {path!r} is a module: add the function's name, as in {path}.{name}")
    if isinstance(found, type):
        raise WrongCall(f"{what} {path!r} is a class: give a function of one argument, such as {example}")
    if not callable(found):
        kind = type(found).__name__
        raise WrongCall(f"{what} {path!r} is a {kind}, not a function: give one, such as {example}")
    if getattr(found, "__module__", None) == "__main__":
        raise _in_main(path, what)
    try:
        inspect.signature(found).bind(None)
    except TypeError as error:
        raise WrongCall(f"{what} {path!r} does not take one argument ({error}): write {example}") from error
    except ValueError:
        pass  # a builtin without a signature: only the call can tell
    return found  # type: ignore[no-any-return]


def load_object(path: str, what: str, default_attribute: str) -> Any:
    """What stands at ``path``; ``what`` names it in errors, ``default_attribute`` completes ``file.py``."""
    location, attribute = _split(path, what, default_attribute)
    if location == "__main__":
        raise _in_main(path, what)
    if location.endswith(".py"):
        file = Path(location).expanduser().resolve()
        if not file.is_file():
            raise WrongCall(f"{what}: there is no file {str(file)!r}: give a .py file or a dotted name")
        module = _guarded(lambda: _import_file(file), path, location, what)
    else:
        module = _guarded(lambda: importlib.import_module(location), path, location, what)
    try:
        return getattr(module, attribute)
    except AttributeError:
        pass
    inner = f"{location}.{attribute}"
    if hasattr(module, "__path__") and importlib.util.find_spec(inner) is not None:
        return _guarded(lambda: importlib.import_module(inner), path, inner, what)  # the callers refuse it
    near = close_names(attribute, [name for name in vars(module) if not name.startswith("_")])
    raise WrongCall(f"{what} {path!r}: module {location!r} has no {attribute!r}{near}")


def _in_main(path: str, what: str) -> WrongCall:
    return WrongCall(f"{what} {path!r} lives in __main__, where workers cannot find it: move it to a module")


def _split(path: str, what: str, default_attribute: str) -> tuple[str, str]:
    if path.endswith(".py"):
        return path, default_attribute
    location, _, attribute = path.rpartition(":") if ":" in path else path.rpartition(".")
    well_formed = location.endswith(".py") or all(part.isidentifier() for part in location.split("."))
    if not attribute.isidentifier() or not well_formed:
        example = f"my_package.my_module.{default_attribute} or path/to/file.py:{default_attribute}"
        raise WrongCall(f"{what} {path!r} is not a dotted name: give module and name, as in {example}")
    return location, attribute


def _import_file(file: Path) -> ModuleType:
    if str(file.parent) not in sys.path:  # as for a script: what stands beside it can be imported
        sys.path.insert(0, str(file.parent))
    name = file.stem
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(file):
        return loaded
    if loaded is not None or name in sys.stdlib_module_names:  # the plain name is taken by another module
        name = f"{name}_{zlib.crc32(str(file).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _no_module(missing: str) -> str:
    """Where a module was looked for, and what is there instead."""
    package, _, name = missing.rpartition(".")
    parent = sys.modules.get(package)
    if parent is not None and hasattr(parent, "__path__"):
        siblings = [found.name for found in pkgutil.iter_modules(parent.__path__)]
        return f"package {package!r} has no module {name!r}{close_names(name, siblings)}"
    if parent is not None:
        return f"no module {missing!r}: {package!r} is a module, not a package: correct the name"
    places = ", ".join(repr(entry) for entry in sys.path[:3])
    return f"no module {missing!r} in {places}, …: correct the name, or add its folder to PYTHONPATH"


def _guarded(load: Callable[[], ModuleType], path: str, location: str, what: str) -> ModuleType:
    """Import the user's module; whatever it raises becomes one line."""
    try:
        return load()
    except WrongCall as error:  # the module makes a problem that is wrong
        raise WrongCall(f"{what} {path!r}: {error}") from error
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if location == missing or location.startswith(f"{missing}."):
            raise WrongCall(f"{what} {path!r}: {_no_module(missing)}") from error
        why = f"{location!r} imports {missing!r}, which is not installed"
        raise WrongCall(f"{what} {path!r}: {why}: install it for {sys.executable}") from error
    except SyntaxError as error:
        place = f"{error.filename}:{error.lineno}: {error.msg}"
        raise WrongCall(f"{what} {path!r}: {location!r} is not valid Python ({place}): correct it") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit() at import must not end the command silently
        said = f"{type(error).__name__}: {one_line(error)}".rstrip(": ")
        raise WrongCall(f"{what} {path!r}: {location!r} raised {said} at import: correct it") from error


def close_names(name: str, names: list[str]) -> str:
    """The end of an error about an unknown ``name``: similar ``names``, or the first of them."""
    near = difflib.get_close_matches(name, names, n=3)
    if near:
        return f": did you mean {' or '.join(near)}?"
    more = ", …" if len(names) > 6 else ""
    return f": there are {', '.join(names[:6])}{more}" if names else ": it is empty"


def one_line(error: BaseException) -> str:
    """The text of an exception without line breaks."""
    return " ".join(str(error).split())[:300]
