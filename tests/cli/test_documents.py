"""What README.md and docs/ say of the commands is so."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from nas_hpc.analytics.cli import analytics
from nas_hpc.cli.main import COMMANDS, nas_hpc
from nas_hpc.config import Settings
from nas_hpc.problem import load_problem

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(group: click.Group, path: tuple[str, ...]) -> dict[tuple[str, ...], click.Command]:
    """Commands below ``group`` by their words."""
    found: dict[tuple[str, ...], click.Command] = {}
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        below = commands(command, (*path, name)) if isinstance(command, click.Group) else {}
        found |= below or {(*path, name): command}
    return found


ALL = commands(nas_hpc, ("nas-hpc",)) | commands(analytics, ("deephyper-analytics",))


def called() -> list[str]:
    """Calls of the two programs in code of the documents."""
    text = "\n".join(path.read_text() for path in TEXTS)
    lines = re.findall(r"^    ((?:nas-hpc|deephyper-analytics) .*)$", text, re.MULTILINE)
    return lines + re.findall(r"`((?:nas-hpc|deephyper-analytics) [^`]*)`", text)


def test_every_command_stands_in_the_list_with_an_example() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    assert set(COMMANDS) <= {words[1] for words in ALL}
    assert [words for words in ALL if f"`{' '.join(words)}" not in text] == []


@pytest.mark.parametrize("line", called())
def test_a_call_in_a_document_names_a_command_and_flags_that_there_are(line: str) -> None:
    own = line.partition(" -- ")[0]  # behind it are flags of the search
    words = re.sub(r"'[^']*'|\"[^\"]*\"", "x", own).split()  # flags of other programs are quoted
    found = [command for path, command in ALL.items() if tuple(words[: len(path)]) == path]
    if len(words) == 2 and words[1].startswith("--"):
        return
    assert found, line
    known = {
        option for parameter in found[0].params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    given = {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)}
    assert given <= known | {"--site", "--debug"}


def test_every_setting_is_explained_with_its_default() -> None:
    explained: dict[str, str] = {}
    for line in (ROOT / "docs" / "settings.md").read_text().splitlines():
        if line.startswith("| `"):
            names, defaults = (cell.strip() for cell in line.split("|")[1:3])
            values = [value.strip(" `") for value in defaults.split(",")]
            found = re.findall(r"`(\w+)`", names)
            explained |= dict(zip(found, values * len(found) if len(values) == 1 else values, strict=True))
    shown = {name: one.value for name, one in Settings().items()}
    said = {n: str(v).lower() if isinstance(v, bool) else f"{v:g}" if isinstance(v, float) else str(v)
            for n, v in shown.items()}  # fmt: skip
    assert explained == said


def test_links_in_the_documents_lead_somewhere() -> None:
    for path in TEXTS:
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert link.startswith("http") or (path.parent / link).exists(), (path.name, link)


def test_the_problem_of_the_readme_is_one(tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    problem = load_problem(f"{tmp_path}/mine.py:Problem")
    assert problem.hyperparameter_names == ["lr", "units", "solver", "momentum"]
