"""The job scripts, with small executables in place of the scheduler and the environment, and one chain for real.

A fake writes down how it was called. The fake qsub and sbatch put a job into a queue, from where the test runs it, in
an environment as bare as a scheduler's.
"""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.common import REPOSITORY

SHELL_FILES = sorted(
    path for folder in ("cluster", "nscc", "slurm") for path in (REPOSITORY / "scripts" / folder).iterdir()
)
QSTAT = """cat <<END
Job Id: $2
    Job_Name = grpo
    resources_used.cput = 99:00:00
    resources_used.walltime = 00:00:30
    Resource_List.select = 1:ngpus=4
    Resource_List.walltime = $WALLTIME
END"""
QSUB = """job=$(mktemp -d "$QUEUE/XXXXXX")
[[ $1 == -v ]] && for name in ${2//,/ }; do printf '%s=%s\\n' "$name" "${!name}"; done >"$job/environment"
cat >"$job/script"
echo 78.pbs"""
SBATCH = """job=$(mktemp -d "$QUEUE/XXXXXX")
env >"$job/environment"
[[ $1 == --array=* ]] && echo "SLURM_ARRAY_TASK_ID=${1#--array=}" >>"$job/environment"
cp "${@: -1}" "$job/script\""""
FAKES = {
    "qstat": QSTAT,
    "qsub": QSUB,
    "squeue": 'echo "$WALLTIME"',
    "scontrol": "printf 'node1\\nnode2\\n'",
    "sbatch": SBATCH,
    # Options of their own, then what they run.
    "srun": 'while [[ $1 == -* ]]; do shift; done; exec "$@"',
    "apptainer": 'shift; while [[ $1 != *.sif ]]; do shift; done; shift; exec "$@"',
    "module": "",
    "pbsdsh": "",
    "uv": "",
    "ldd": 'echo "ldd (GNU libc) $GLIBC"',
    "nvidia-smi": '[[ -n $DRIVER ]] && echo "$DRIVER"',
}
# The environment's own: the command of a job ends with the next of the statuses.
OF_THE_ENVIRONMENT = {"python": 'status=$(head -n 1 "$STATUSES"); sed -i 1d "$STATUSES"; exit "${status:-0}"', "hf": ""}
SITE = {
    "nscc": {"PBS_JOBID": "77.pbs", "WALLTIME": "04:00:00"},
    "slurm": {"SLURM_JOB_ID": "77", "WALLTIME": "3:59:30"},
}
SUFFIX = {"nscc": "pbs", "slurm": "sbatch"}


@dataclass(frozen=True)
class Site:
    """A checkout on a cluster of fakes."""

    root: Path
    kind: str

    @property
    def checkout(self) -> Path:
        return self.root / "checkout"

    @property
    def calls(self) -> list[str]:
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def commands(self) -> list[str]:
        """What the environment's Python was called with; of a run's folder and scratch only the end."""
        calls = [call.removeprefix("python ") for call in self.calls if call.startswith("python ")]
        return [call.replace(f"{self.root}/scratch/cs336", "SCRATCH") for call in calls]

    def queue(self) -> list[Path]:
        return list((self.root / "queue").iterdir())

    def job(self, name: str) -> Path:
        return self.checkout / "scripts" / self.kind / f"{name}.{SUFFIX[self.kind]}"

    def run(self, script: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a script somewhere else, as a scheduler does."""
        environment = {
            "PATH": f"{self.root / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.root),
            "SCRATCH": str(self.root / "scratch"),
            "CALLS": str(self.root / "calls"),
            "QUEUE": str(self.root / "queue"),
            "STATUSES": str(self.root / "statuses"),
            "PBS_O_WORKDIR": str(self.checkout),
            "SLURM_SUBMIT_DIR": str(self.checkout),
            "OMP_NUM_THREADS": "64",  # as PBS sets it: all of the node's
            **SITE[self.kind],
            **variables,
        }
        command = ["bash", str(script), *arguments]
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)

    def run_next(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the one job in the queue."""
        (job,) = self.queue()
        carried = dict(line.split("=", 1) for line in (job / "environment").read_text().splitlines() if "=" in line)
        script = job.rename(self.root / "spool" / job.name) / "script"
        return self.run(script, **{**carried, **variables})

    def statuses(self, *of_commands: int) -> None:
        (self.root / "statuses").write_text("".join(f"{status}\n" for status in of_commands))


def executable(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/bash\necho "{path.name} $*" >>"$CALLS"\n{body}\n')
    path.chmod(0o755)


def build_site(root: Path, kind: str) -> Site:
    site = Site(root, kind)
    for folder in ("queue", "spool", "scratch"):
        (root / folder).mkdir()
    for folder in ("cluster", "nscc", "slurm", "recipes"):
        shutil.copytree(REPOSITORY / "scripts" / folder, site.checkout / "scripts" / folder)
    for name, body in FAKES.items():
        executable(root / "bin" / name, body)
    for name, body in OF_THE_ENVIRONMENT.items():
        executable(site.checkout / ".venv" / "bin" / name, body)
    site.statuses()
    return site


@pytest.fixture(params=["nscc", "slurm"])
def site(tmp_path, request):
    return build_site(tmp_path, request.param)


@pytest.fixture
def nscc(tmp_path):
    return build_site(tmp_path, "nscc")


# Four hours, 30 s of them gone, less ten minutes.
TRAINING = (
    "scripts/launch.py --standalone --nproc-per-node 4 {} --output SCRATCH/runs/{} --resume auto "
    "--time-limit-minutes 229.50 --keep-checkpoints 2"
)
QWEN = "qwen2.5-math-1.5b"


@pytest.mark.parametrize(
    ("job", "variables", "command"),
    [
        (
            "grpo",
            {},
            TRAINING.format(
                f"scripts/train_grpo.py --config scripts/recipes/{QWEN}-grpo.toml --checkpoint-every 50", f"{QWEN}-grpo"
            ),
        ),
        (
            "grpo",
            {"RECIPE": "my/own.toml", "GPUS": "2", "MARGIN_MINUTES": "30"},
            TRAINING.format("scripts/train_grpo.py --config my/own.toml --checkpoint-every 50", "own")
            .replace("node 4", "node 2")
            .replace("229.50", "209.50"),
        ),
        (
            "sft",
            {"RUN": "first"},
            TRAINING.format(
                f"scripts/train_sft.py --config scripts/recipes/{QWEN}-sft.toml --checkpoint-every 50", "first"
            ),
        ),
        (
            "expert_iteration",
            {},
            TRAINING.format(
                f"scripts/train_expert_iteration.py --config scripts/recipes/{QWEN}-expert-iteration.toml "
                "--checkpoint-every 1",
                f"{QWEN}-expert-iteration",
            ),
        ),
        (
            "baseline",
            {},
            "scripts/launch.py --standalone --nproc-per-node 4 -m cs336_alignment.math_baseline "
            f"--data data/gsm8k/test.jsonl --model data/models/{QWEN} --output SCRATCH/runs/baseline",
        ),
        ("check_node", {}, f"scripts/check_node.py --model data/models/{QWEN} --output SCRATCH/runs/check_node"),
    ],
)
def test_each_job_runs_down_to_its_command(site, job, variables, command):
    ended = site.run(site.job(job), **variables)
    assert ended.returncode == 0, ended.stderr
    assert site.commands() == [command]
    assert site.queue() == []


def test_a_baseline_that_was_killed_goes_on(site):
    folder = site.root / "scratch/cs336/runs/test"
    folder.mkdir(parents=True)
    (folder / "run.json").touch()
    assert site.run(site.job("baseline"), MODEL="m", RUN="test").returncode == 0
    assert site.commands()[0].endswith("--model m --output SCRATCH/runs/test --resume")


@pytest.mark.parametrize("job", ["grpo", "sft", "expert_iteration", "grpo_multinode", "sweep"])
@pytest.mark.parametrize("status", [0, 1, 2, 75, 137])
def test_a_job_submits_itself_again_where_it_was_stopped_alone(site, job, status):
    member = {"PBS_ARRAY_INDEX": "3", "SLURM_ARRAY_TASK_ID": "3"} if job == "sweep" else {}
    site.statuses(status, 0)
    ended = site.run(site.job(job), **member, RECIPE="my/own.toml", MODULES="cuda gcc")
    assert ended.returncode == status
    assert "module load cuda gcc" in site.calls
    assert len(site.queue()) == (status == 75)
    if status == 75:
        # The next job is one run, not a whole sweep, has the same command, and ends the chain.
        (queued,) = site.queue()
        if site.kind == "nscc":
            assert "#PBS -J" not in (queued / "script").read_text()
        else:
            member_alone = "--array=3 " if job == "sweep" else ""
            assert f"sbatch {member_alone}scripts/slurm/{job}.sbatch" in site.calls
        assert site.run_next().returncode == 0
        first, second = site.commands()
        assert first == second
        assert site.queue() == []


def test_a_failed_job_shows_the_end_of_its_log(site):
    executable(site.checkout / ".venv/bin/python", "echo this went wrong >&2; exit 1")
    assert "this went wrong" in site.run(site.job("grpo")).stdout
    assert "this went wrong" in (site.root / f"scratch/cs336/logs/{QWEN}-grpo.log").read_text()


def test_a_job_submits_itself_no_more_often_than_it_may(site):
    site.statuses(*[75] * 9)
    ended = [site.run(site.job("grpo"), MAX_RESUBMISSIONS="3", RUN="again")]
    while site.queue():
        ended.append(site.run_next())
    assert [job.returncode for job in ended] == [75] * 4
    assert len(site.commands()) == 4
    assert "stopped after 3 resubmissions" in ended[-1].stdout
    assert len(set(site.commands())) == 1


def test_a_job_that_is_deleted_does_not_come_back(nscc):
    """qdel sends SIGTERM to every process of the job, the script's own shell among them."""
    executable(nscc.checkout / ".venv/bin/python", "kill -TERM $PPID; exit 75")
    assert nscc.run(nscc.job("grpo")).returncode == -signal.SIGTERM
    assert nscc.queue() == []


def test_where_a_node_may_not_submit_the_job_says_what_to_type(nscc):
    executable(nscc.root / "bin" / "qsub", "exit 1")
    nscc.statuses(75)
    ended = nscc.run(nscc.job("grpo"))
    assert ended.returncode == 75
    assert "submit scripts/nscc/grpo.pbs by hand" in ended.stdout


@pytest.mark.parametrize(("walltime", "message"), [("00:10:30", "the walltime has to be longer"), ("", "walltime")])
def test_a_job_without_time_does_not_begin(nscc, walltime, message):
    ended = nscc.run(nscc.job("grpo"), WALLTIME=walltime)
    assert ended.returncode == 2
    assert message in ended.stdout
    assert nscc.commands() == []
    assert nscc.queue() == []


@pytest.mark.parametrize(
    ("kind", "walltime", "minutes"),
    [
        ("nscc", "120:00:00", 120 * 60 - 10.5),
        ("nscc", "09:08:39", 9 * 60 - 2 + 0.15),  # no octal numbers
        ("nscc", "00:18:39", 8.15),
        ("slurm", "1-02:00:00", 26 * 60 - 10),
        ("slurm", "10:01", 0.01),
        ("slurm", "08:09:09", 8 * 60 - 1 + 0.15),
        ("slurm", "UNLIMITED", None),
    ],
)
def test_the_time_limit_is_what_the_scheduler_says(tmp_path, kind, walltime, minutes):
    site = build_site(tmp_path, kind)
    ended = site.run(site.job("grpo"), WALLTIME=walltime)
    if minutes is None:
        assert ended.returncode == 2
        assert "give the job a --time" in ended.stdout
    else:
        (given,) = re.findall(r"--time-limit-minutes (\S+)", site.commands()[0])
        assert float(given) == pytest.approx(minutes, abs=0.006)


def test_the_members_of_a_sweep_are_all_there_are(site):
    first, last = map(
        int, re.findall(r"^#(?:PBS -J |SBATCH --array=)(\d+)-(\d+)$", site.job("sweep").read_text(), re.M)[0]
    )
    for member in range(first, last + 1):
        site.run(site.job("sweep"), PBS_ARRAY_INDEX=str(member), SLURM_ARRAY_TASK_ID=str(member))
    asked = [
        re.findall(r"--config (\S+) --learning-rate (\S+) --seed (\d) .*--output (\S+)", c)[0] for c in site.commands()
    ]
    recipes, rates, seeds = (sorted(set(column)) for column in list(zip(*asked, strict=True))[:3])
    assert sorted(member[:3] for member in asked) == sorted(itertools.product(recipes, rates, seeds))
    assert len({folder for *_, folder in asked}) == last + 1 == 12
    beyond = site.run(site.job("sweep"), PBS_ARRAY_INDEX=str(last + 1), SLURM_ARRAY_TASK_ID=str(last + 1))
    assert beyond.returncode == 2
    assert "make the array of the job's header fit" in beyond.stderr


def test_several_nodes_meet_at_the_first(tmp_path):
    site = build_site(tmp_path, "nscc")
    (tmp_path / "nodes").write_text("node1\nnode2\nnode3\n")
    assert site.run(site.job("grpo_multinode"), PBS_NODEFILE=str(tmp_path / "nodes")).returncode == 0
    (here,) = site.commands()
    assert here.startswith(
        "scripts/launch.py --nnodes 3 --rdzv-backend c10d --rdzv-endpoint node1:29500 --rdzv-id 77.pbs "
        f"--nproc-per-node 4 scripts/train_grpo.py --config scripts/recipes/{QWEN}-grpo.toml --sharding fsdp2 "
        "--tensor-parallel-size 4 --checkpoint-every 50"
    )
    elsewhere = sorted(call for call in site.calls if call.startswith("pbsdsh"))
    assert [call.split(" -- ")[0] for call in elsewhere] == ["pbsdsh -n 1", "pbsdsh -n 2"]
    # What the other nodes are given runs from their bare environment to the same command.
    for call in elsewhere:
        command = call.partition(" -- /bin/bash -c ")[2]
        bare = {
            "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
            "CALLS": str(tmp_path / "calls"),
            "HOME": "/",
            "STATUSES": "/dev/null",
        }
        subprocess.run(["bash", "-c", command], env=bare, cwd="/", capture_output=True, check=False)
    assert site.commands() == [here] * 3


def test_slurm_nodes_meet_at_the_first(tmp_path):
    site = build_site(tmp_path, "slurm")
    ended = site.run(site.job("grpo_multinode"), SLURM_JOB_NUM_NODES="2", SLURM_JOB_NODELIST="node[1-2]")
    assert ended.returncode == 0
    assert "--nnodes 2 --rdzv-backend c10d --rdzv-endpoint node1:29500 --rdzv-id 77 " in site.commands()[0]
    assert "scontrol show hostnames node[1-2]" in site.calls


def test_a_container_holds_the_commands(site):
    assert site.run(site.job("grpo"), CONTAINER="my.sif").returncode == 0
    (call,) = (call for call in site.calls if call.startswith("apptainer"))
    assert call.startswith(f"apptainer exec --nv --bind {site.root}/scratch my.sif .venv/bin/python scripts/launch.py")


ALLOCATION = {"PROJECT": "12345678", "ACCOUNT": "12345678"}
STAGED = [f"hf download Qwen/Qwen2.5-Math-1.5B --local-dir data/models/{QWEN}", "python scripts/prepare_gsm8k.py"]
CUDA_12 = [
    "uv venv --python 3.11 --allow-existing",
    "uv pip install --no-config --only-binary vllm -r docs/requirements-cuda12.txt",
    "uv pip install --no-config --no-deps -e .",
]


@pytest.mark.parametrize(
    ("machine", "installed"),
    [
        ({"DRIVER": "580.65.06"}, ["uv sync --locked --extra gpu"]),
        ({"DRIVER": "535.161.08"}, CUDA_12),
        ({"DRIVER": "", "CUDA": "12"}, CUDA_12),
        ({"DRIVER": "535.161.08", "CUDA": "13"}, ["uv sync --locked --extra gpu"]),
    ],
)
def test_staging_gets_environment_model_and_data(site, machine, installed):
    stage = site.checkout / "scripts" / site.kind / "stage.sh"
    for _ in range(2):
        (site.root / "calls").unlink(missing_ok=True)
        ended = site.run(stage, GLIBC="2.35", **machine, **ALLOCATION)
        assert ended.returncode == 0, ended.stderr
        assert [call for call in site.calls if call.split()[0] in ("uv", "hf", "python")] == [*installed, *STAGED]
    headers = [path.read_text() for path in stage.parent.glob(f"*.{SUFFIX[site.kind]}")]
    assert len(headers) == 7
    for text in headers:
        assert re.findall(r"^#(?:PBS -P |SBATCH --account=)(\S+)$", text, re.M) == ["12345678"]


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ({"GLIBC": "2.28", "DRIVER": "535.161.08"}, "vLLM's wheels for CUDA 12 need 2.31"),
        ({"GLIBC": "2.27", "DRIVER": "580.65.06"}, "vLLM's wheels for CUDA 13 need 2.28"),
        ({"GLIBC": "2.4", "DRIVER": "580.65.06"}, "scripts/cluster/container.def"),
        ({"GLIBC": "2.35", "DRIVER": ""}, "stage with CUDA=13 where nvidia-smi on a GPU node shows driver 580"),
    ],
)
def test_staging_says_what_it_cannot_know_or_use(site, machine, message):
    stage = site.checkout / "scripts" / site.kind / "stage.sh"
    ended = site.run(stage, **machine, **ALLOCATION)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert not [call for call in site.calls if call.split()[0] in ("uv", "hf", "python")]
    assert site.run(stage, GLIBC="2.35", CUDA="13").returncode != 0  # nobody to charge


def test_staging_takes_models_by_their_hub_names(nscc):
    models = ("allenai/OLMo-2-0425-1B", "Qwen/Qwen2.5-Math-1.5B")
    nscc.run(nscc.checkout / "scripts/nscc/stage.sh", *models, GLIBC="2.31", CUDA="13", **ALLOCATION)
    downloads = [call.split()[-1] for call in nscc.calls if call.startswith("hf")]
    assert downloads == ["data/models/olmo-2-0425-1b", f"data/models/{QWEN}"]
    for line in (REPOSITORY / "scripts/recipes").glob("*.toml"):
        assert re.findall(r'^model = "(.*)"$', line.read_text(), re.M)[0] in downloads


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: str(path.relative_to(REPOSITORY / "scripts")))
def test_scripts_are_sound(path):
    if path.suffix == ".def":
        return
    subprocess.run(["bash", "-n", str(path)], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is in the dev group of the locked environment")
    command = [shellcheck, "-x", str(path.relative_to(REPOSITORY))]
    checked = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


CHAIN = """
model = "data/policy"
train_data = "data/arithmetic/train.jsonl"
eval_data = "data/arithmetic/dev.jsonl"
eval_limit = 8
max_tokens = 40
rollout_batch_size = 16
train_batch_size = 16
group_size = 4
n_grpo_steps = 3
token_budget = 512
engine = "transformers"
wandb = "disabled"
"""


@pytest.mark.slow
def test_a_chain_of_jobs_runs_to_the_end(nscc):
    """Submitted, stopped by its walltime, submitted by itself, finished: two ranks train the embedded policy."""
    shutil.rmtree(nscc.checkout / "scripts")
    for name in ("scripts", "data"):
        (nscc.checkout / name).symlink_to(REPOSITORY / name)
    executable(nscc.checkout / ".venv/bin/python", f'exec {sys.executable} "$@"')
    (nscc.root / "chain.toml").write_text(CHAIN)
    folder = nscc.root / "scratch/cs336/runs/chain"

    # A second beyond the margin: less than loading the policy takes, so the run stops after its first step.
    options = {"RECIPE": str(nscc.root / "chain.toml"), "GPUS": "2", "THREADS": "1", "MARGIN_MINUTES": "10"}
    stopped = nscc.run(nscc.job("grpo"), **options, WALLTIME="00:10:31")
    assert stopped.returncode == 75, stopped.stdout
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_1"]
    finished = nscc.run_next(WALLTIME="10:00:00")
    assert finished.returncode == 0, finished.stdout
    assert nscc.queue() == []

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("eval", 0),
        ("train", 1),
        ("train", 2),
        ("train", 3),
        ("eval", 3),
    ]
    sessions = json.loads((folder / "run.json").read_text())["sessions"]
    assert [(session["ranks"], session["start_step"]) for session in sessions] == [(2, None), (2, 1)]
    log = (nscc.root / "scratch/cs336/logs/chain.log").read_text()
    assert "stopped after step 1 (time limit)" in log
