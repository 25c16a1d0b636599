"""The driver check, the GPU list as PBS writes it, and the run record."""

import pytest
import torch

from cs336_alignment import environment
from cs336_alignment.environment import (
    DriverTooOldError,
    MachineError,
    check_cuda_driver,
    check_vllm_settings,
    device_indices,
    driver_problem,
    glibc_problem,
    vllm_settings_problem,
)
from tests.common import REPOSITORY


@pytest.mark.parametrize(
    ("driver", "cuda", "fits"),
    [
        ("580.65.06", "13.0", True),
        ("590.10", "13.0", True),
        ("575.57.08", "13.0", False),
        ("535.161.08", "12.8", True),
        ("525.60.13", "12.4", True),
        ("470.57", "12.8", False),
        ("535.161.08", "99.0", True),  # unknown: no verdict
    ],
)
def test_driver_problem(driver, cuda, fits):
    assert (driver_problem(driver, cuda, "2.36") is None) == fits


@pytest.mark.parametrize(
    ("glibc", "cuda", "fits"),
    [
        ("2.28", "12", False),  # RHEL 8
        ("2.28", "13.0", True),
        ("2.31", "12.8", True),  # Debian 11, Ubuntu 20.04
        ("2.9", "12", False),  # 9 < 31, whatever the alphabet says
        ("2.17", "13.0", False),
        ("", "12", True),  # not glibc: no verdict
        ("2.28", "99.0", True),
    ],
)
def test_glibc_problem(glibc, cuda, fits):
    problem = glibc_problem(glibc, cuda)
    assert (problem is None) == fits
    if problem:
        assert f"glibc {glibc}, but" in problem
        assert "apptainer exec --nv" in problem
        assert environment.CONTAINER_RECIPE in problem


def test_an_old_driver_and_an_old_c_library_need_a_container():
    """The command for the CUDA 12 stack would compile vLLM there, and is not offered."""
    problem = driver_problem("535.161.08", "13.0", "2.28")
    assert problem is not None
    assert "driver here is 535.161.08" in problem
    assert "apptainer exec --nv" in problem
    assert "uv pip install" not in problem


@pytest.mark.parametrize(
    ("vllm", "settings", "named"),
    [
        ("0.19.1", {"CUDA_VISIBLE_DEVICES": "MIG-6cb2-1"}, "--engine transformers"),
        ("0.19.1", {"PYTORCH_CUDA_ALLOC_CONF": "a:1,expandable_segments:True"}, "unset PYTORCH_CUDA_ALLOC_CONF"),
        ("0.19.1", {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False", "CUDA_VISIBLE_DEVICES": "0,1"}, None),
        ("0.32.0", {"CUDA_VISIBLE_DEVICES": "MIG-6cb2-1"}, None),
        ("0.32.0", {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, None),
        ("0.19.1", {}, None),
        ("", {"CUDA_VISIBLE_DEVICES": "MIG-6cb2-1"}, None),
    ],
)
def test_settings_that_an_old_vllm_cannot_use(monkeypatch, vllm, settings, named):
    problem = vllm_settings_problem(vllm, settings)
    assert (problem is None) == (named is None)
    monkeypatch.setattr(environment, "_installed", lambda package: vllm)
    monkeypatch.setattr(environment.os, "environ", settings)
    if named is None:
        check_vllm_settings()
    else:
        with pytest.raises(MachineError, match=named):
            check_vllm_settings()


def test_an_old_driver_stops_with_the_command_to_run(monkeypatch):
    monkeypatch.setattr(environment, "_nvidia_smi", lambda fields: ["535.161.08", "535.161.08"])
    monkeypatch.setattr(environment.torch.version, "cuda", "13.0")
    monkeypatch.setattr(environment.platform, "libc_ver", lambda: ("glibc", "2.36"))
    with pytest.raises(
        DriverTooOldError, match=r"uv pip install --no-config --only-binary vllm -r docs/requirements-cuda12\.txt"
    ):
        check_cuda_driver()
    assert (REPOSITORY / environment.CUDA12_REQUIREMENTS).exists()


def test_no_driver_and_no_cuda_are_fine(monkeypatch):
    monkeypatch.setattr(environment, "_nvidia_smi", lambda fields: [])
    check_cuda_driver()
    monkeypatch.setattr(environment, "_nvidia_smi", lambda fields: ["470.1"])
    monkeypatch.setattr(environment.torch.version, "cuda", None)
    check_cuda_driver()


GPUS = {"GPU-aaaa-1": "0", "GPU-aabb-2": "1", "GPU-cccc-3": "2"}


@pytest.mark.parametrize(
    ("visible", "indices"),
    [("GPU-cccc-3,GPU-aaaa-1", "2,0"), ("GPU-aab", "1"), ("0,GPU-cccc-3", "0,2"), ("3", "3")],
)
def test_device_indices(visible, indices):
    assert device_indices(visible, GPUS) == indices


@pytest.mark.parametrize("visible", ["GPU-aa", "GPU-dddd"])
def test_device_indices_refuses_unknown_and_ambiguous_uuids(visible):
    with pytest.raises(ValueError, match=f"names {visible}"):
        device_indices(visible, GPUS)


def test_use_device_indices(monkeypatch):
    monkeypatch.setattr(environment, "_nvidia_smi", lambda fields: ["0, GPU-aaaa-1", "1, GPU-aabb-2"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aabb-2,GPU-aaaa-1")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    environment.use_device_indices()
    assert environment.os.environ["CUDA_VISIBLE_DEVICES"] == "1,0"
    assert environment.os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_without_nvidia_smi_the_uuids_stay(monkeypatch):
    monkeypatch.setattr(environment, "_nvidia_smi", lambda fields: [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aabb-2")
    environment.use_device_indices()
    assert environment.os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-aabb-2"


def test_describe_names_versions_and_hardware():
    record = environment.describe()
    assert record["packages"]["torch"].startswith("2.")
    assert record["hardware"]["cpu_cores"] >= 1
    assert record["hardware"]["torch_threads"] == torch.get_num_threads()
