"""What is chosen from the predicted memory, what a run is told that does not fit, and what the commands do with it."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoTokenizer

from cs336_alignment.run_folder import UsageError
from cs336_alignment.training import command_line
from cs336_alignment.training.expert_iteration import ExpertIterationConfig
from cs336_alignment.training.grpo import GRPOConfig
from cs336_alignment.training.learner import TOKEN_BUDGET, OptimizerConfig
from cs336_alignment.training.memory import GIB, ModelShape
from cs336_alignment.training.memory_check import check_memory, read_shape, settle
from cs336_alignment.training.memory_phases import MemoryPrediction
from cs336_alignment.training.memory_plan import advice, choose, predict
from cs336_alignment.training.session import RunConfig
from cs336_alignment.training.sft import SFTConfig, SFTStepsConfig
from tests.common import TINY_QWEN2
from tests.test_memory import OLMO_1B, QWEN_1_5B, QWEN_7B

QWEN, OLMO, LARGE = (ModelShape.from_config(config) for config in (QWEN_1_5B, OLMO_1B, QWEN_7B))
COMMANDS = {"grpo": GRPOConfig, "sft": SFTConfig, "expert iteration": ExpertIterationConfig}
LONGEST = 256 + 1024


def options(command=GRPOConfig, budget=None, accumulation=None, **run):
    optimizer = OptimizerConfig(token_budget=budget, gradient_accumulation_steps=accumulation)
    return command(run=RunConfig(**{"gpu_memory_gib": 39.4, **run}), optimizer=optimizer)


def planned(config, shape, longest=LONGEST) -> tuple[Any, MemoryPrediction]:
    chosen = choose(config, shape, longest)
    return chosen, predict(chosen, shape, longest)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("shape", [QWEN, OLMO], ids=["Qwen2.5-Math-1.5B", "OLMo-2-0425-1B"])
def test_the_defaults_start_on_gpus_of_40_gb(shape, ranks, command, monkeypatch):
    """One GPU by checkpointing, several without."""
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    chosen, prediction = planned(options(command), shape)
    assert prediction.fits
    assert prediction.gpu == int(39.4 * GIB)
    assert chosen.optimizer.token_budget >= TOKEN_BUDGET
    assert chosen.run.activation_checkpointing == (ranks == 1)
    assert chosen.run.gpu_memory_utilization >= 0.1


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("parts", [1, 4])
def test_7b_starts_on_four_gpus_of_80_gb(command, parts, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    chosen, prediction = planned(options(command, gpu_memory_gib=79.1, tensor_parallel_size=parts), LARGE)
    assert prediction.fits
    assert chosen.optimizer.token_budget >= TOKEN_BUDGET
    assert prediction.engine.weights == 2 * LARGE.parameters // parts


def test_the_chosen_budget_is_no_larger_than_is_of_use(monkeypatch):
    one, prediction = planned(options(gpu_memory_gib=80), QWEN)
    assert prediction.total < prediction.gpu
    assert one.optimizer.token_budget == 4096
    assert not one.run.activation_checkpointing
    # Where so much does not fit, the largest that does.
    less, prediction = planned(options(gpu_memory_gib=36, activation_checkpointing=False, max_tokens=512), QWEN, 768)
    assert 768 < less.optimizer.token_budget < 4096
    assert prediction.training(less.optimizer.token_budget) <= prediction.gpu
    assert prediction.training(less.optimizer.token_budget + 64) > prediction.gpu
    assert planned(options(gpu_memory_gib=400), QWEN)[0].optimizer.token_budget == 4096
    monkeypatch.setenv("WORLD_SIZE", "4")
    few = replace(options(gpu_memory_gib=400), rollout_batch_size=8, train_batch_size=8)
    assert planned(few, QWEN)[0].optimizer.token_budget == 8 // 4 * LONGEST
    # An example that is longer than all budgets runs alone.
    assert planned(options(gpu_memory_gib=400), QWEN, longest=20000)[0].optimizer.token_budget == 20000


def test_the_engine_is_given_what_the_rollout_batch_needs_and_no_more(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    chosen, prediction = planned(options(gpu_memory_gib=79.1), QWEN)
    share = chosen.run.gpu_memory_utilization
    # 64 sequences of 1,280 positions, 28 KiB each; weights; and an allowance of 2 GiB or so for vLLM's own work.
    cache = 64 * 1280 * 28 * 1024
    assert prediction.largest_engine_share > 0.7
    assert cache + 2 * QWEN.parameters + GIB < share * 79.1 * GIB < cache + 2 * QWEN.parameters + 4 * GIB
    twice = replace(options(gpu_memory_gib=79.1), rollout_batch_size=512)
    more = planned(twice, QWEN)[0].run.gpu_memory_utilization - share
    assert more * 79.1 * GIB == pytest.approx(cache, abs=0.011 * 79.1 * GIB)
    # On one small GPU it has what the trainer leaves.
    monkeypatch.setenv("WORLD_SIZE", "1")
    chosen, prediction = planned(options(), OLMO)
    assert chosen.run.gpu_memory_utilization == prediction.largest_engine_share < 0.5


def test_what_the_options_set_stands(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    given = options(budget=2048, gpu_memory_utilization=0.4, activation_checkpointing=True)
    assert choose(given, QWEN, LONGEST) == given
    # A budget that needs checkpointing gets it.
    assert choose(options(budget=7000), QWEN, LONGEST).run.activation_checkpointing is False
    assert choose(options(budget=12000), QWEN, LONGEST).run.activation_checkpointing is True
    # The handout's split, in place of a budget: four rollouts a microbatch.
    chosen, prediction = planned(options(accumulation=64), QWEN)
    assert chosen.optimizer == OptimizerConfig(gradient_accumulation_steps=64)
    assert prediction.row_tokens == 4 * LONGEST
    assert prediction.fits


@pytest.mark.parametrize(
    ("ranks", "given", "told"),
    [
        (4, {"budget": 10**6}, "set --token-budget to 4096 or less"),
        (4, {"budget": 10000, "activation_checkpointing": False}, "set --token-budget to 4096 or less"),
        (4, {"accumulation": 1}, "set --token-budget 4096 in place of --gradient-accumulation-steps"),
        (4, {"gpu_memory_utilization": 0.9}, "set --gpu-memory-utilization 0.[12][0-9]"),
        (4, {"gpu_memory_utilization": 0.05}, "set --gpu-memory-utilization 0.[12][0-9]"),
        (1, {"activation_checkpointing": False, "max_tokens": 3000}, "set --activation-checkpointing True"),
        (4, {"gpu_memory_gib": 24, "sharding": "replicas"}, "set --sharding fsdp2"),
        (2, {"gpu_memory_gib": 24, "gpu_memory_utilization": 0.9, "sharding": "replicas"}, "0.[0-9]+; .*fsdp2"),
        (1, {"gpu_memory_gib": 24}, "what stays in memory is too much: start more ranks"),
        (1, {"max_tokens": 10**5}, "one sequence of 100,256 tokens is too much: lower --max-tokens"),
        (4, {"gpu_memory_gib": 15, "dtype": "float32"}, "set --dtype bfloat16"),
    ],
)
def test_advice_names_what_helps(ranks, given, told, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    config = options(**given)
    longest = config.longest_example()
    assert not planned(config, QWEN, longest)[1].fits
    words = advice(config, QWEN, longest)
    assert re.search(told, words), words


def test_an_engine_too_large_for_a_gpu_is_spread_over_several(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    config = options(gpu_memory_gib=46)
    assert not planned(config, LARGE)[1].fits
    assert advice(config, LARGE, LONGEST) == "set --tensor-parallel-size 2"


def small(**run):
    return options(model=str(TINY_QWEN2), dry_run=True, gpu_memory_gib=8, **run)


def predicted(config):
    shape, longest = read_shape(config.run.model), config.longest_example()
    return predict(choose(config, shape, longest), shape, longest)


def test_a_dry_run_prints_the_table_and_does_not_train(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "parse_options", lambda *_: small())
    command_line.run_command(GRPOConfig, None, lambda _: pytest.fail("trained"))
    said = capsys.readouterr().out
    assert "predicted memory of each GPU, in GiB, of 8.00" in said
    assert "--activation-checkpointing False (chosen); --token-budget 4096 (chosen)" in said


def test_a_run_without_a_gpu_gets_a_fixed_budget(monkeypatch):
    ran: list[Any] = []
    given = replace(small(), run=replace(small().run, dry_run=False))
    monkeypatch.setattr(command_line, "parse_options", lambda *_: given)
    command_line.run_command(GRPOConfig, None, ran.append)
    (config,) = ran
    assert (config.optimizer.token_budget, config.run.activation_checkpointing) == (4096, False)
    split = replace(given, optimizer=OptimizerConfig(gradient_accumulation_steps=32))
    assert settle(split).optimizer == split.optimizer


def test_a_run_that_does_not_fit_is_refused_after_the_table(capsys):
    with pytest.raises(UsageError, match="--gpu-memory-utilization"):
        check_memory(small(gpu_memory_utilization=0.98))
    assert "rollout engine" in capsys.readouterr().out


def test_the_table_has_a_column_for_every_phase(capsys):
    check_memory(small())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "there is no GPU here: planned for 1 of 8 GiB (--gpu-memory-gib)"
    names = ["sync", "proof", "rollouts", "forward", "backward", "embedding", "step", "checkpoint"]
    assert lines[2].split() == names
    assert lines[5].split() == ["reserve", *["3.50"] * 8]
    assert not any("initial policy" in line for line in lines)
    assert len({len(line) for line in lines[2:-1]}) == 1
    assert max(map(len, lines[:-1])) <= 120


def test_ranks_and_options_reach_the_prediction(monkeypatch):
    assert predicted(options(model=str(TINY_QWEN2), gpu_memory_gib=None)).gpu == int(39.4 * GIB)
    assert predicted(small(budget=4096, max_tokens=5000)).row_tokens == 5256
    assert predicted(replace(small(), kl_coef=0.1)).how.keep_reference
    assert predicted(small()).how.shards == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert predicted(small()).how.shards == 4
    assert predicted(small(sharding="replicas")).how.shards == 1
    assert predicted(small(dtype="float32")).how.compute_bytes == 4
    assert predicted(small(engine="transformers")).engine.copies == 0


def test_the_microbatch_of_traces_is_that_of_the_longest(tmp_path):
    # 32 examples in 16 microbatches: two each. The longer response decides.
    data = tmp_path / "traces.jsonl"
    rows = [{"prompt": "x", "response": " y" * count} for count in (3, 200)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunConfig(model=str(TINY_QWEN2), max_tokens=8, gpu_memory_gib=8)
    optimizer = OptimizerConfig(gradient_accumulation_steps=16)
    sft = SFTConfig(run=run, optimizer=optimizer, sft=SFTStepsConfig(batch_size=32), data=data)
    tokenizer = AutoTokenizer.from_pretrained(TINY_QWEN2)
    longest = len(tokenizer("x")["input_ids"]) + len(tokenizer(" y" * 200)["input_ids"]) + 1  # EOS
    assert longest > 200
    assert predicted(sft).row_tokens == 2 * longest
