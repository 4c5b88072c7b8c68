"""What a machine has, read from what its kernel shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nas_hpc.resources.topology import Machine, natural, pinning, run_bounded, this_machine, under_mask
from tests.resources import trees

SMI = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5bd0c1de-0001)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-5bd0c1de-0002)
"""
SMI_MIG = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5bd0c1de-0001)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-0001)
  MIG 3g.20gb     Device  1: (UUID: MIG-c6d4f1ef-0002)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-5bd0c1de-0002)
"""


def look(
    root: Path, allowed: range | list[int] = range(2), smi: str | None = None, **environ: str
) -> Machine:
    return this_machine(environ, root=root, cpus=allowed, run=trees.answers(nvidia_smi=smi))


# -- cores ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("old", [False, True])
def test_cores_are_physical_and_named_by_their_first_hardware_thread(tmp_path: Path, old: bool) -> None:
    trees.cpus(tmp_path, [[n, n + 4] for n in range(4)], old=old)
    trees.numa(tmp_path, [[0, 1, 4, 5], [2, 3, 6, 7]])
    machine = look(tmp_path, range(8))
    assert machine.cores == (0, 1, 2, 3)
    assert machine.threads_per_core == 2
    assert machine.numa == ((0, 1), (2, 3))


def test_only_what_the_process_may_use_counts(tmp_path: Path) -> None:
    trees.cpus(tmp_path, [[n, n + 4] for n in range(4)])
    trees.numa(tmp_path, [[0, 1, 4, 5], [2, 3, 6, 7]])
    confined = look(tmp_path, [6, 7, 3])
    assert confined.cores == (3, 6), "core 2 may be used by its second thread only"
    assert confined.threads_per_core == 1
    assert confined.numa == (), "one domain is left"


def test_cores_of_two_kinds_count_the_threads_that_all_have(tmp_path: Path) -> None:
    trees.cpus(tmp_path, [[0, 1], [2, 3], [4], [5]])
    machine = look(tmp_path, range(6))
    assert (machine.cores, machine.threads_per_core) == ((0, 2, 4, 5), 1)


def test_a_kernel_that_shows_nothing_has_a_core_for_each_cpu(tmp_path: Path) -> None:
    assert look(tmp_path, [3, 5]) == Machine((3, 5))
    directory = tmp_path / "sys/devices/system/cpu/cpu0/topology"
    directory.mkdir(parents=True)
    (directory / "core_cpus_list").write_text("garbage\n")
    assert look(tmp_path, [0]).cores == (0,)


def test_this_machine_is_read_as_it_is() -> None:
    machine = this_machine()
    allowed = os.sched_getaffinity(0)
    assert set(machine.cores) <= allowed
    assert set(pinning(machine.cores)) == allowed
    assert len(machine.cores) * machine.threads_per_core <= len(allowed)


# -- GPUs -------------------------------------------------------------------------------------------------
def test_nvidias_gpus_are_numbered_and_its_mig_devices_named(tmp_path: Path) -> None:
    trees.nvidia(tmp_path, 2)
    assert look(tmp_path, smi=SMI).gpus == ("0", "1")
    assert look(tmp_path, smi=SMI_MIG).gpus == ("MIG-c6d4f1ef-0001", "MIG-c6d4f1ef-0002", "1")
    assert look(tmp_path, smi="No devices found.\n").gpus == (), "a control group hides them"
    assert this_machine({}, root=tmp_path / "none", cpus=[0], run=trees.answers(nvidia_smi=SMI)).gpus == ()


@pytest.mark.parametrize("smi", [None, "", "Segmentation fault", "GPU zero"])
def test_an_nvidia_smi_that_hangs_or_prints_garbage_is_told_and_the_driver_asked(
    tmp_path: Path, smi: str | None
) -> None:
    trees.nvidia(tmp_path, 4)
    machine = look(tmp_path, smi=smi)
    assert machine.gpus == ("0", "1", "2", "3")
    [note] = machine.notes
    assert "nvidia-smi" in note


@pytest.mark.parametrize(
    ("mask", "gpus"),
    [("1", ("1",)), ("1,0", ("1", "0")), ("", ()), ("-1", ()), ("NoDevFiles", ()), ("0,-1,1", ("0",)),
     ("GPU-5bd0c1de-0002", ("GPU-5bd0c1de-0002",)), ("GPU-5bd0c1de-0001,1", ("GPU-5bd0c1de-0001", "1"))],
)  # fmt: skip
def test_the_mask_that_a_scheduler_gave_is_kept(tmp_path: Path, mask: str, gpus: tuple[str, ...]) -> None:
    trees.nvidia(tmp_path, 2)
    machine = look(tmp_path, smi=SMI, CUDA_VISIBLE_DEVICES=mask)
    assert machine == Machine((0, 1), gpus=gpus)


@pytest.mark.parametrize(
    ("mask", "said"),
    [("7", "CUDA_VISIBLE_DEVICES=7: there is no GPU 7; there are 0, 1"),
     ("0,GPU-ffff", "there is no GPU GPU-ffff; there are 0, 1"),
     ("all of them", "there is no GPU all of them")],
)  # fmt: skip
def test_gpus_that_do_not_exist_are_named_in_one_line(tmp_path: Path, mask: str, said: str) -> None:
    trees.nvidia(tmp_path, 2)
    machine = look(tmp_path, smi=SMI, CUDA_VISIBLE_DEVICES=mask)
    [note] = machine.notes
    assert said in note
    assert set(machine.gpus) <= {"0", "1"}
    assert "this machine has none" in look(tmp_path / "bare", CUDA_VISIBLE_DEVICES="0").notes[0]


def test_amds_gpus_are_those_with_simd_units_that_may_be_read(tmp_path: Path) -> None:
    trees.amd(tmp_path, [0, 0, *[440] * 9])
    (tmp_path / "sys/class/kfd/kfd/topology/nodes/4/properties").unlink()  # as a control group does
    assert look(tmp_path).gpus == tuple(map(str, range(8)))
    assert look(tmp_path, ROCR_VISIBLE_DEVICES="6,2").gpus == ("6", "2")
    assert look(tmp_path, ROCR_VISIBLE_DEVICES="GPU-0000000000001002").gpus == ("GPU-0000000000001002",)
    assert "no GPU 8" in look(tmp_path, ROCR_VISIBLE_DEVICES="8").notes[0]


def test_intels_tiles_are_gpus_by_their_hierarchys_names(tmp_path: Path) -> None:
    trees.intel(tmp_path, [2] * 6)
    assert look(tmp_path).gpus == tuple(map(str, range(12)))
    composite = look(tmp_path, ZE_FLAT_DEVICE_HIERARCHY="COMPOSITE")
    assert composite.gpus[:3] == ("0.0", "0.1", "1.0")
    masked = look(tmp_path, ZE_FLAT_DEVICE_HIERARCHY="COMPOSITE", ZE_AFFINITY_MASK="0.1,3")
    assert masked.gpus == ("0.1", "3")
    assert masked.notes == ()


def test_a_laptops_graphics_are_no_accelerator(tmp_path: Path) -> None:
    trees.intel(tmp_path, [1], slot="0000:00:02.0")
    assert look(tmp_path).gpus == ()
    trees.intel(tmp_path / "other", [1], vendor="0x1a03")
    assert look(tmp_path / "other").gpus == ()


def test_ids_are_sorted_by_their_numbers() -> None:
    assert sorted(["10", "9", "0.10", "0.9", "MIG-2"], key=natural) == ["0.9", "0.10", "9", "10", "MIG-2"]
    assert under_mask("9", [str(n) for n in range(3)])[1].endswith("there are 0, 1, 2")


# -- commands ---------------------------------------------------------------------------------------------
def test_a_command_is_bounded_and_its_failure_is_no_answer(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nsleep 600 & sleep 600\n")
    slow.chmod(0o755)
    assert run_bounded([str(slow)], 0.2) is None
    assert run_bounded(["false"], 60) is None
    assert run_bounded(["no-such-program-here"], 60) is None
    assert run_bounded(["printf", "a\\nb"], 60) == "a\nb"
