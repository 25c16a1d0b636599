"""The lock file, the wheel and the submission."""

import re
import shutil
import subprocess
import tomllib
import zipfile
from urllib.parse import urlsplit

import pytest

from cs336_alignment.environment import CUDA12_REQUIREMENTS
from cs336_alignment.rollout.selection import GPU_INSTALL
from scripts import make_submission
from tests.common import REPOSITORY


def test_the_lock_names_the_public_index_alone():
    # A local index at locking time would leave paths here, and `uv lock --check` would still pass.
    packages = tomllib.loads((REPOSITORY / "uv.lock").read_text())["package"]
    for package in packages:
        source = package["source"]
        if package["name"] == "cs336-alignment":
            assert source == {"editable": "."}
            continue
        assert urlsplit(source["registry"]).netloc.split(".") == ["pypi", "org"], package["name"]
        for file in [*package.get("wheels", []), package.get("sdist", {})]:
            assert "path" not in file
            assert not file or file["url"].startswith("https://files.pythonhosted")


def names(requirements: list[str]) -> set[str]:
    """The packages that requirements name, without extras, versions and markers."""
    return {re.split(r"[\[<>=!~; ]", requirement)[0] for requirement in requirements}


def test_the_gpu_install_builds_nothing():
    """flash-attn has no wheels; it is an extra of its own."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert names(project["optional-dependencies"]["gpu"]) == {"vllm"}
    assert names(project["optional-dependencies"]["flash-attn"]) == {"flash-attn"}
    assert GPU_INSTALL == "uv sync --extra gpu"


def test_the_cuda_12_stack_has_all_that_the_project_needs():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = (REPOSITORY / CUDA12_REQUIREMENTS).read_text().splitlines()
    requirements = [line for line in lines if line and not line.startswith("#")]
    assert names(project["dependencies"]) <= names(requirements)
    assert "vllm" in names(requirements)
    # An older transformers or datasets would bring code back that is kept for it alone.
    assert {"transformers>=5.19,<5.20", "datasets>=5.2,<6"} <= set(requirements)


def test_gitignore_anchors_the_data_folders():
    lines = (REPOSITORY / ".gitignore").read_text().splitlines()
    assert "/data/gsm8k/" in lines
    assert not {"data", "data/", "runs/"} & set(lines)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv builds the wheel")
def test_the_wheel_holds_the_rooms_and_the_prompts(tmp_path):
    subprocess.run(["uv", "build", "--quiet", "--wheel", "--out-dir", tmp_path, REPOSITORY], check=True)
    [wheel] = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    package = REPOSITORY / "cs336_alignment"
    source = {str(path.relative_to(REPOSITORY)) for path in package.rglob("*") if path.suffix in (".py", ".prompt")}
    assert len(source) > 20
    assert {name for name in packed if ".dist-info/" not in name} == source


@pytest.fixture
def project(tmp_path):
    """A project in small: each entry of CONTENTS, and what must stay out."""
    for name in make_submission.CONTENTS:
        path = tmp_path / name
        if path.suffix or name in ("LICENSE", ".gitignore", ".python-version"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        else:
            path.mkdir(parents=True)
            (path / "file.txt").touch()
    for unwanted in ("data/gsm8k/test.jsonl", "data/models/m/model.safetensors", ".venv/lib.py", "runs/a/run.json"):
        (tmp_path / unwanted).parent.mkdir(parents=True)
        (tmp_path / unwanted).touch()
    for unwanted in ("tests/__pycache__/x.pyc", "docs/a/checkpoints/step_1/optimizer.pt", "docs/a/completions/b.jsonl"):
        (tmp_path / unwanted).parent.mkdir(parents=True)
        (tmp_path / unwanted).touch()
    return tmp_path


def test_the_submission_holds_what_is_named_and_nothing_else(project):
    found = {str(path.relative_to(project)) for path in make_submission.submitted_files(project)}
    assert {"cs336_alignment/file.txt", "data/arithmetic/file.txt", "data/policy/file.txt", "test_results.xml"} <= found
    assert len(found) == len(make_submission.CONTENTS)


def test_the_submission_wants_test_results(project):
    (project / "test_results.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"test_results\.xml is missing"):
        list(make_submission.submitted_files(project))


def test_the_top_level_holds_what_it_should():
    expected = set(make_submission.CONTENTS) | {"data", "test_results.xml"}
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    assert {name.split("/")[0] for name in tracked.stdout.splitlines()} <= {name.split("/")[0] for name in expected}
