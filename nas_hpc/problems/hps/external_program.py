"""The program of ``nas_hpc.problems.hps.external``: says −x² − y² on its output, or in its job's data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nas_hpc import jobs


def main(argv: Sequence[str] | None = None) -> None:
    """``--x 2 --y 3`` prints ``DH-OUTPUT: -13.0``; ``--note`` reads x and y from the job's data instead and
    leaves objective and distance there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--x", type=float)
    parser.add_argument("--y", type=float)
    parser.add_argument("--note", action="store_true")
    flags = parser.parse_args(argv)
    if not flags.note:
        print(f"DH-OUTPUT: {-(flags.x**2) - flags.y**2}")
        return
    here = jobs.current()
    if here is None:
        parser.error("--note is for a job: its point is the job's data")
    x, y = here.data["x"], here.data["y"]
    jobs.update_data(dh_objective=-(x**2) - y**2, distance=(x**2 + y**2) ** 0.5)


if __name__ == "__main__":
    main()
