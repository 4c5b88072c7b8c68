"""Files of the parents' directories, linked into a job's before its first attempt. Blocking: for a thread."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nas_hpc.records import Job

OWN_FILES = frozenset(
    {"job.json", "result.json", "metrics.jsonl", "data.json", "preprocess.out", "postprocess.out"}
)
"""What the launcher and its processes write into every job's directory: each job has its own."""
_SHOWN = 5


@dataclass(slots=True)
class Links:
    """What was linked, for a person."""

    count: int = 0
    parents: int = 0
    renamed: list[str] = field(default_factory=list)
    """"out.dat of b is out.dat_b": the name was taken."""
    left_out: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        files = "1 file" if self.count == 1 else f"{self.count} files"
        parents = "1 parent" if self.parents == 1 else f"{self.parents} parents"
        said = [f"{files} of {parents} linked", *self.renamed[:_SHOWN]]
        if len(self.renamed) > _SHOWN:
            said.append(f"and {len(self.renamed) - _SHOWN} more have other names")
        if self.left_out:
            said.append(f"left out, for all their names were taken: {', '.join(self.left_out[:_SHOWN])}")
        return "; ".join(said)


def link_files(job: Job, directory: Path, parents: Sequence[tuple[Job, Path]]) -> Links:
    """Link what matches ``job.stages.input_files`` in the ``parents``' directories into ``directory``.

    The links are relative. A file that is there is left as it is: the link is then called NAME_PARENT, and
    NAME_PARENT_ID if that is taken, too. What a parent has linked itself is linked to where it really is, so
    that chains of jobs have no chains of links. A second call changes nothing. Raises OSError.
    """
    done = Links(parents=len(parents))
    own = {*OWN_FILES, f"{job.name}.out"}  # written through a link it would be the parent's
    base = os.path.realpath(directory)
    for parent, source in parents:
        for found in _matches(source, job.stages.input_files):
            target = os.path.realpath(source / found)
            if not os.path.exists(target):
                continue
            name = os.path.basename(found)
            names = [name, f"{name}_{parent.name}", f"{name}_{parent.name}_{parent.id[:8]}"]
            given = _link(target, base, [one for one in names if one not in own])
            if not given:
                done.left_out.append(f"{name} of {parent.name}")
                continue
            done.count += 1
            if given != name:
                done.renamed.append(f"{name} of {parent.name} is {given}")
    return done


def _matches(source: Path, patterns: str) -> Iterator[str]:
    """Paths below ``source``, each once; not what the launcher wrote there. None if there is no directory."""
    seen: set[str] = set()
    for pattern in patterns.split():
        for found in sorted(glob.glob(pattern, root_dir=source)):
            if found not in seen and found not in OWN_FILES:
                seen.add(found)
                yield found


def _link(target: str, directory: str, names: Sequence[str]) -> str:
    """The first of ``names`` that is free, or is this link already; "" if none is."""
    for name in names:
        path = os.path.join(directory, name)
        try:
            os.symlink(os.path.relpath(target, directory), path)
            return name
        except FileExistsError:
            if os.path.islink(path) and os.path.realpath(path) == target:
                return name
    return ""
