"""One random trial in this process's foreground: ``python -m nas_hpc.apps.trials.local DIR``."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Sequence

from nas_hpc.apps.trials.runner import Order, prepare_directory, trial_environ, trial_words
from nas_hpc.apps.trials.space import load_space
from nas_hpc.apps.trials.spec import SEARCH, read_spec
from nas_hpc.errors import NasHpcError
from nas_hpc.trial.jsonfiles import read_json
from nas_hpc.trial.status import STATUS_FILE


def run(directory: str) -> int:
    """Run the one trial of the specification in ``directory``; returns the exit code. Raises NasHpcError."""
    spec = read_spec(directory)
    space = load_space(spec.space)
    seed = spec.seed if spec.seed is not None else secrets.randbits(32)
    [parameters] = space.optimizer("random", seed, 1).ask(1)
    order = Order(
        id=1,
        number=1,
        parameters=parameters,
        expanded=space.expand(parameters),
        directory=str(spec.trial_directory(SEARCH, 1)),
        flags=spec.search_flags,
        environ=space.searched.environ,
    )
    prepare_directory(order.directory, parameters, order.expanded)
    print(f"parameters {parameters} (seed {seed})", flush=True)
    environ = {**os.environ, **trial_environ(spec, order)}
    done = subprocess.run(trial_words(spec, order), cwd=order.directory, env=environ, check=False)
    status = read_json(os.path.join(order.directory, STATUS_FILE))
    status = status if isinstance(status, dict) else {}
    if status.get("job_status") == "success" and done.returncode == 0:
        print(f"{spec.metric} {status.get('reward')}")
        return 0
    why = status.get("reason") or f"its program ended with {done.returncode}"
    print(f"nas-hpc: error: the trial failed: {' '.join(str(why).split())}", file=sys.stderr)
    return 1


def main(argv: Sequence[str]) -> int:
    """As a program."""
    try:
        return run(argv[0])
    except NasHpcError as error:
        print(f"nas-hpc: error: {' '.join(error.message.split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
