"""The driver check, the GPU list as PBS writes it, and the run record."""

import pytest
import torch

from cs336_alignment import environment
from cs336_alignment.environment import DriverTooOldError, check_cuda_driver, device_indices, driver_problem
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
    assert (driver_problem(driver, cuda) is None) == fits


def test_an_old_driver_stops_with_the_command_to_run(monkeypatch):
    monkeypatch.setattr(environment, "_nvidia_smi", lambda fields: ["535.161.08", "535.161.08"])
    monkeypatch.setattr(environment.torch.version, "cuda", "13.0")
    with pytest.raises(DriverTooOldError, match=r"uv pip install --no-config -r docs/requirements-cuda12\.txt"):
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
