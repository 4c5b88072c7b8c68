"""Machines as the kernel shows them below /sys, /proc and /dev: written down as files for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path


def spans(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def cpus(root: Path, siblings: Sequence[Sequence[int]], *, old: bool = False) -> None:
    """One core for each entry, with these hardware threads."""
    for threads in siblings:
        for cpu in threads:
            directory = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
            directory.mkdir(parents=True)
            name = "thread_siblings_list" if old else "core_cpus_list"
            (directory / name).write_text(spans(threads) + "\n")


def numa(root: Path, domains: Sequence[Sequence[int]]) -> None:
    """Domains with these CPUs; node10 comes after node9."""
    for number, inside in enumerate(domains):
        directory = root / f"sys/devices/system/node/node{number}"
        directory.mkdir(parents=True)
        (directory / "cpulist").write_text(spans(inside) + "\n")


def nvidia(root: Path, count: int) -> None:
    for number in range(count):
        directory = root / f"proc/driver/nvidia/gpus/0000:{number:02x}:00.0"
        directory.mkdir(parents=True)
        (directory / "information").write_text(f"Model: NVIDIA\nDevice Minor: {number}\n")


def amd(root: Path, simds: Sequence[int]) -> None:
    """As on a Frontier node: processors have no SIMD units, GPUs have; the listing is not in order."""
    for number, simd in enumerate(simds):
        directory = root / f"sys/class/kfd/kfd/topology/nodes/{number}"
        directory.mkdir(parents=True)
        text = f"cpu_cores_count {0 if simd else 16}\nsimd_count {simd}\nunique_id {4096 + number}\n"
        (directory / "properties").write_text(text)


def intel(
    root: Path, tiles: Sequence[int], *, vendor: str = "0x8086", slot: str = "0000:{:02x}:00.0"
) -> None:
    """As the i915 driver shows cards with their tiles, and the connectors of a screen beside them."""
    for number, count in enumerate(tiles):
        card = root / f"sys/class/drm/card{number}"
        (card / "device").mkdir(parents=True)
        (card / "device/vendor").write_text(vendor + "\n")
        (card / "device/uevent").write_text(f"DRIVER=i915\nPCI_SLOT_NAME={slot.format(number + 24)}\n")
        for tile in range(count):
            (card / f"gt/gt{tile}").mkdir(parents=True)
        (root / f"sys/class/drm/card{number}-DP-1").mkdir()


def answers(**outputs: str | None) -> Callable[[Sequence[str], float], str | None]:
    """Commands that answer so (None: missing, failed or hung); others are missing."""

    def run(argv: Sequence[str], timeout_s: float) -> str | None:
        assert timeout_s > 0
        names = [word for word in argv if word.replace("-", "_") in outputs]
        return outputs[names[0].replace("-", "_")] if names else None

    return run


def nothing(argv: Sequence[str], timeout_s: float) -> str | None:
    """No command there is."""
    return None
