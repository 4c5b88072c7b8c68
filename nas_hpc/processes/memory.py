"""Memory that is cheap to fork: a process's pages gathered into huge ones, once, before its first child.

A fork copies, and the end of a child takes apart, one entry for each page of 4 KiB that its parent has
written to: a hundred megabytes of a training library cost more than all the rest of a short evaluation. Of a
huge page there is one entry for two megabytes; a child that writes to it still copies only the 4 KiB it
writes to.

Best effort: Linux 6.1 and later (``MADV_COLLAPSE``); where it cannot be done nothing changes. Standard
library only, Python 3.8 or later: it is loaded in the user's interpreters.
"""

from __future__ import annotations

import os
import time

from nas_hpc.processes import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

HUGE_BYTES = 2 << 20
_PAGE_BYTES = 4096
_PER_HUGE = HUGE_BYTES // _PAGE_BYTES
_DENSE = 0.75
"""Ranges of which less is used are left alone: gathering them would fill them up."""
_LONGEST_S = 2.0
_NOT_PRESENT = bytes(range(128))


def gather(longest_s: float = _LONGEST_S) -> int:
    """Gather this process's own memory into huge pages, for at most ``longest_s``; how many there are now."""
    done, deadline = 0, time.monotonic() + longest_s
    if os.sysconf("SC_PAGE_SIZE") != _PAGE_BYTES:
        return 0
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            for start in _candidates():
                if time.monotonic() > deadline:
                    break
                pagemap.seek(start // _PAGE_BYTES * 8)
                # The highest bit of each eight bytes says that the page is there.
                used = len(pagemap.read(_PER_HUGE * 8)[7::8].translate(None, _NOT_PRESENT))
                if used >= _DENSE * _PER_HUGE:
                    if not linux.collapse(start, HUGE_BYTES):
                        break  # not with this kernel, or no huge page is free
                    done += 1
    except OSError:
        pass
    return done


def _candidates() -> Iterator[int]:
    """Addresses of the aligned ranges of the process's own writable memory."""
    with open("/proc/self/maps") as stream:
        lines = stream.read().splitlines()
    for line in lines:
        words = line.split(None, 5)
        if words[1] != "rw-p" or (len(words) > 5 and not words[5].startswith("[heap]")):
            continue
        first, end = (int(word, 16) for word in words[0].split("-"))
        yield from range(-(-first // HUGE_BYTES) * HUGE_BYTES, end - HUGE_BYTES + 1, HUGE_BYTES)
