"""Loaded by every interpreter of the hostile run: a site has traces of another host from its beginning.

Sites are made by commands, in processes of the tests and of their programs; what all of them do last is to
put site.toml in its place.
"""

from __future__ import annotations

import json
import os
import sys

OWNER = {
    "id": "f" * 32, "host": "elsewhere", "boot_id": "another", "pid": 1, "start_time": 1.0, "workflow": "",
}  # fmt: skip


def leave(event: str, arguments: tuple[object, ...]) -> None:
    """The audit hook."""
    if event == "os.rename" and str(arguments[1]).endswith("/site.toml"):
        path = os.path.join(os.path.dirname(str(arguments[1])), "run", "owner.json")
        if not os.path.exists(path):
            with open(path, "w") as file:
                json.dump(OWNER, file)


sys.addaudithook(leave)
