"""The scripts that are given to batch systems, from templates that a site may replace by its own."""

from __future__ import annotations

import os
import pwd
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

import nas_hpc
from nas_hpc.batch.jobs import JOB_VARIABLE
from nas_hpc.batch.machine import Machine
from nas_hpc.batch.machines import CONFIGURATION
from nas_hpc.batch.system import Request
from nas_hpc.batch.systems import system_of
from nas_hpc.config import HELP, NO_SETTINGS, PREFIX
from nas_hpc.errors import WrongCall
from nas_hpc.processes.staging import original
from nas_hpc.resources.ends import START_VARIABLE, WALLTIME_VARIABLE
from nas_hpc.site import SITE_VARIABLE, Site

INCLUDED = "launcher.sh.j2"
_INCLUDE = f'{{% include "{INCLUDED}" %}}\n'
_OF_TESTS = f"{PREFIX}TEST_"
_NOT_CARRIED = frozenset({"NODES"})
"""-n says how many nodes there are to be."""
_CARRIED_TOO = frozenset({f"{PREFIX}RECONNECT_S"})
_SET_BY_TEMPLATES = frozenset({START_VARIABLE, WALLTIME_VARIABLE})


@dataclass(frozen=True, slots=True)
class Body:
    """What a script runs after its directives, and under what."""

    what: str
    """One line about it, for the person who reads it."""
    program: tuple[str, ...]
    """The first words of the last line: nas-hpc, or a Python and what it runs."""
    path: str
    """Directory that goes before the others in PATH."""
    launcher: tuple[str, ...]
    """The words after ``program``."""
    home: str
    exports: Mapping[str, str] = field(default_factory=dict)


def body_of(
    machine: Machine,
    request: Request,
    site: Site,
    key: str,
    *,
    job_mode: str,
    workflow: str,
    chained: bool,
    environ: Mapping[str, str],
) -> Body:
    """What the script of the batch job ``key`` runs: this program's launcher, with ``environ``'s settings."""
    python = original(os.path.abspath(sys.executable), environ)
    path = os.path.dirname(python)
    beside = os.path.join(path, "nas-hpc")
    program = ("nas-hpc",) if os.access(beside, os.X_OK) else (python, "-m", "nas_hpc.cli")
    words = ["launcher", "--job-mode", job_mode, *(("--wf-filter", workflow) if workflow else ())]
    if machine.system == "local":  # others have nodes and an end of their own
        words += ["--nodes", str(request.nodes), "--time-limit-minutes", str(request.walltime_minutes)]
    if chained:
        words.append("--chained")
    exports = carried(environ) | {
        SITE_VARIABLE: str(site.path), JOB_VARIABLE: key, f"{PREFIX}MACHINE": machine.name,
    }  # fmt: skip
    configuration = environ.get(CONFIGURATION, "")
    if configuration and machine.origin.startswith(f"{configuration.rstrip('/')}/"):
        exports[CONFIGURATION] = configuration  # or the launcher would not find the machine's file
    if len(program) > 1:
        exports["PYTHONPATH"] = _python_path(environ)
    whose = f"workflow {workflow}" if workflow else "all workflows"
    return Body(
        what=f"Runs the jobs of {whose} of the site {site.path}.".replace("\n", " "),
        program=program,
        path=path,
        launcher=tuple(words),
        home=environ.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir,
        exports=exports,
    )


def carried(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings in ``environ`` that hold for a launcher elsewhere, too."""
    names = {PREFIX + name.upper() for name in HELP if name.upper() not in _NOT_CARRIED} | _CARRIED_TOO
    return {
        name: value
        for name, value in sorted(environ.items())
        if value and (name in names or name.startswith(_OF_TESTS))
    }


def render(machine: Machine, request: Request, body: Body, templates: Path | None = None) -> str:
    """The script. A file in ``templates`` goes before the package's own of that name.

    Raises WrongCall for a template that is broken, with file and line, and for what no directive can say.
    """
    name = f"{machine.system}.sh.j2"
    ours = {PREFIX + one for one in NO_SETTINGS} - set(body.exports) - _SET_BY_TEMPLATES
    values = {
        "machine": machine,
        "request": request,
        "directives": system_of(machine.system).directives(request),
        "walltime": f"{request.walltime_minutes // 60:02d}:{request.walltime_minutes % 60:02d}:00",
        "what": body.what,
        "path": body.path,
        "home": body.home,
        "exports": body.exports,
        "command": [*body.program, *body.launcher],
        "unset": sorted(ours),
        "version": nas_hpc.__version__,
    }
    environment = _environment(templates)
    try:
        template = environment.get_template(name)
        values["template"] = _shown(template.filename)
        text = template.render(values)
    except jinja2.TemplateSyntaxError as error:
        raise WrongCall(f"{error.filename or name}, line {error.lineno}: {_plain(error)}") from None
    except jinja2.TemplateNotFound as error:
        raise WrongCall(f"template {name} wants {error}, which there is not") from None
    except Exception as error:  # a template is a program: it may do anything
        raise WrongCall(f"{_place(error, name)}: {type(error).__name__}: {_plain(error)}") from None
    if not text.startswith("#!/"):
        first = text.partition("\n")[0]
        raise WrongCall(f"{template.filename}, line 1: {first!r}; a script begins with #!/bin/bash")
    return text


def render_file(name: str, **values: object) -> str:
    """Another of the package's templates."""
    return _environment(None).get_template(name).render(values)


def template_text(system: str, templates: Path | None = None) -> str:
    """The template of that batch system as one file, to be copied and changed."""
    loader = _environment(templates).loader
    assert loader is not None
    environment = _environment(templates)
    text = loader.get_source(environment, f"{system}.sh.j2")[0]
    return text.replace(_INCLUDE, loader.get_source(environment, INCLUDED)[0])


def _environment(templates: Path | None) -> jinja2.Environment:
    own = [str(templates)] if templates is not None else []
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*own, os.path.join(os.path.dirname(__file__), "templates")]),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - a script for a shell; words are quoted by the filter q
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["q"] = lambda value: shlex.quote(str(value))
    return environment


def _python_path(environ: Mapping[str, str]) -> str:
    """Where this package is found, then what the submitter has."""
    given = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    entries = [os.path.dirname(os.path.dirname(os.path.abspath(nas_hpc.__file__))), *given]
    return os.pathsep.join(dict.fromkeys(original(os.path.abspath(entry), environ) for entry in entries))


def _shown(file: str | None) -> str:
    """The name of the package's own templates, the path of others."""
    path = file or ""
    return os.path.basename(path) if os.path.dirname(path).startswith(os.path.dirname(__file__)) else path


def _place(error: BaseException, name: str) -> str:
    """File and line of the template at which it went wrong."""
    place, trace = name, error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.endswith(".j2"):
            place = f"{file}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _plain(error: BaseException) -> str:
    return " ".join(str(error).split())
