"""What ``nas-hpc doctor`` says of Balsam classic, where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator

from nas_hpc.cli.checks import BAD, OK, WARN, Finding
from nas_hpc.config import Settings
from nas_hpc.errors import ConfigError, NasHpcError


def check_balsam(settings: Settings) -> Iterator[Finding]:
    """Its environment, and the database that is active (BALSAM_DB_PATH). Nothing of it is needed."""
    from nas_hpc.integrations.balsam.process import DATABASE_VARIABLE, Bridge
    from nas_hpc.integrations.balsam.protocol import BridgeError
    from nas_hpc.integrations.balsam.where import VARIABLE, find_python

    active = os.environ.get(DATABASE_VARIABLE, "")
    chosen = settings.balsam_python.value
    environ = {**os.environ, **({VARIABLE: chosen} if chosen else {})}
    try:
        python, found_by = find_python(environ)
    except ConfigError as error:
        if active or chosen:
            yield Finding("balsam", BAD, error.message)
        return
    if not active:
        yield Finding("balsam", OK, f"its Python is {python} ({found_by}); no database is active")
        return
    try:
        with Bridge(active, environ) as bridge:
            hello = bridge.call("hello", timeout_s=60)
    except BridgeError as error:
        yield Finding("balsam", WARN if error.kind == "down" else BAD, error.message)
        return
    except NasHpcError as error:
        yield Finding("balsam", BAD, error.message, "launch_scripts/setup_balsam.sh makes an environment")
        return
    text = f"{hello['version']}, database {active} at {hello['host']}:{hello['port']}"
    missing = sorted({"AMBS", "PPO", "EVO", "RAN"} - set(hello["applications"]))
    if missing:
        text += f", without {', '.join(missing)}"
        yield Finding("balsam", WARN, text, f"nas-hpc balsam register {active}")
    elif hello["trust"]:
        yield Finding("balsam", WARN, f"{text}, open to strangers", f"nas-hpc balsam protect {active}")
    else:
        yield Finding("balsam", OK, text)
