"""The recipes of scripts/recipes: their commands take them, they fit the GPUs they are for, and say what they are."""

import re
from dataclasses import replace

import pytest

from cs336_alignment.command_line import parse_options
from cs336_alignment.training.expert_iteration import ExpertIterationConfig
from cs336_alignment.training.grpo import GRPOConfig
from cs336_alignment.training.memory_check import check_memory
from cs336_alignment.training.sft import SFTConfig
from tests.common import REPOSITORY
from tests.test_memory import OLMO_1B, QWEN_1_5B

RECIPES = sorted((REPOSITORY / "scripts" / "recipes").glob("*.toml"))
COMMANDS = {"train_sft": SFTConfig, "train_expert_iteration": ExpertIterationConfig, "train_grpo": GRPOConfig}


def read(path):
    """The recipe as the options of the command that its own comment starts it with."""
    (command,) = re.findall(r"^#.* scripts/(train_\w+)\.py", path.read_text(), re.M)
    return parse_options(COMMANDS[command], None, ["--config", str(path)])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_to_start_it_and_where_its_values_are_from(path):
    text = path.read_text()
    assert f"--config {path.relative_to(REPOSITORY)} " in text
    for said in ("[calculated, not run]", "The handout", "float32"):
        assert said in text
    config = read(path)
    assert config.run.train_data.name == "train_full.jsonl"
    assert config.run.eval_data.name == "dev.jsonl"  # never the test split


@pytest.mark.parametrize("path", [path for path in RECIPES if "sft" not in path.stem], ids=lambda path: path.stem)
def test_a_recipe_fits_four_gpus_of_40_gb(path, tmp_path, monkeypatch, capsys):
    """By the prediction, from the models' shapes; an A100-40GB reports 39.4 GiB."""
    (OLMO_1B if "olmo" in path.stem else QWEN_1_5B).save_pretrained(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "4")
    config = read(path)
    check_memory(replace(config, run=replace(config.run, model=str(tmp_path), gpu_memory_gib=39.4)))
    assert "of 39.40" in capsys.readouterr().out


def test_grpo_of_2026_has_the_handouts_values():
    config = read(REPOSITORY / "scripts/recipes/olmo-2-0425-1b-grpo.toml")
    assert (config.n_grpo_steps, config.n_prompts_per_rollout_batch, config.group_size) == (200, 32, 8)
    assert config.on_policy
    assert (config.run.max_tokens, config.run.temperature) == (512, 1.0)
    assert (config.run.eval_every, config.run.eval_limit) == (10, 1024)
    optimizer = config.optimizer
    assert (optimizer.betas, optimizer.weight_decay, optimizer.max_grad_norm) == ((0.9, 0.95), 0.0, 1.0)


def test_learning_rates_of_grpo_are_those_for_float32_weights():
    rates = {path.stem: read(path).optimizer.learning_rate for path in RECIPES if "grpo" in path.stem}
    assert set(rates.values()) == {6e-6}
    assert len(rates) == 3


def test_the_question_only_recipe_differs_in_the_prompt_alone():
    one, other = (read(REPOSITORY / f"scripts/recipes/qwen2.5-math-1.5b-grpo{s}.toml") for s in ("", "-question-only"))
    assert replace(one, run=replace(one.run, prompt="question_only")) == other != one


def test_the_jobs_recipes_are_there():
    jobs = [path for folder in ("nscc", "slurm") for path in (REPOSITORY / "scripts" / folder).iterdir()]
    named = {name for path in jobs for name in re.findall(r"scripts/recipes/[\w.-]+\.toml", path.read_text())}
    assert named == {str(path.relative_to(REPOSITORY)) for path in RECIPES if "olmo" not in path.stem}
