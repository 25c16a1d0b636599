"""The predicted memory table: parameters, activations against what torch allocates, phases, and what to change."""

import json
import re
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoTokenizer, Qwen2Config

from cs336_alignment.numerics.log_probs import BLOCK_BYTES
from cs336_alignment.run_folder import UsageError
from cs336_alignment.training import command_line
from cs336_alignment.training.grpo import GRPOConfig
from cs336_alignment.training.learner import OptimizerConfig
from cs336_alignment.training.memory import (
    GIB,
    ModelShape,
    Row,
    engine_bytes,
    head_buffer_bytes,
    layer_at_work_bytes,
    layer_copy_bytes,
    memory_advice,
    memory_table,
    predict_memory,
    saved_activation_bytes,
)
from cs336_alignment.training.memory_check import check_memory, predict_run
from cs336_alignment.training.microbatch import backward_microbatch
from cs336_alignment.training.packing import Layout, Segment, TokenExample, pack
from cs336_alignment.training.policy import Policy
from cs336_alignment.training.session import RunConfig
from cs336_alignment.training.sft import SFTConfig, SFTStepsConfig
from tests.common import REPOSITORY, TINY_QWEN2

EMBEDDED = REPOSITORY / "data/policy"
QWEN_1_5B = Qwen2Config(
    hidden_size=1536,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    intermediate_size=8960,
    vocab_size=151936,
    tie_word_embeddings=True,
    max_position_embeddings=4096,
)
LAYER = 1536 * 1536 + 1536 + 2 * (1536 * 256 + 256) + 1536 * 1536 + 3 * 1536 * 8960 + 2 * 1536
HEAD = 151936 * 1536
PARAMETERS = HEAD + 28 * LAYER + 1536


@pytest.fixture(scope="module")
def shape():
    return ModelShape.from_config(QWEN_1_5B)


def test_parameters_of_qwen(shape):
    assert shape.parameters == PARAMETERS == 1_543_714_304
    assert (shape.layer_parameters, shape.head_parameters, shape.head_dim) == (LAYER, HEAD, 128)


@pytest.mark.parametrize("path", [TINY_QWEN2, EMBEDDED], ids=["tiny", "embedded"])
def test_parameters_of_models_at_hand(path):
    assert (
        ModelShape.from_config(AutoConfig.from_pretrained(path)).parameters == Policy.load(path).model.num_parameters()
    )


def test_rows():
    # 3 + 2 + 1 tokens and 4 + 5; the responses see 3 + 2 and 3 + 1 keys, and 4 + 5; what follows nothing copies none.
    segments = (Segment(0), Segment(3, (0,)), Segment(2, (0, 1)), Segment(1, (0, 1)), Segment(4, (0,)))
    row = Row.of_layout(Layout((*segments, Segment(5, (0, 4)))))
    assert row == Row(tokens=15, keys=5 + 4 + 9, pairs=2 * 5 + 1 * 4 + 5 * 9)
    assert Row.filled(10, longest=7) == Row(tokens=10, keys=30, pairs=70)


class LiveBytes(TorchDispatchMode):
    """Follows the tensors that operations make: the bytes alive now, and the most there were."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._storages: Any = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.follow(tensor.untyped_storage())
        return result

    def follow(self, storage):
        if storage not in self._storages:
            self._storages[storage] = True
            self._add(storage.nbytes())
            weakref.finalize(storage, self._add, -storage.nbytes())

    def ignore(self, tensor):
        self._storages[tensor.untyped_storage()] = True

    def _add(self, count):
        self.now += count
        self.most = max(self.most, self.now)


def saved_bytes(policy, batch):
    """What autograd keeps of a forward pass, each storage once, parameters left out."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy(batch, lambda log_probs, at: -log_probs)
    return sum(storage.nbytes() for storage in storages.values())


def most_bytes(policy, batch):
    """The most that is alive in the second microbatch of a step, gradients counted and parameters not."""
    with LiveBytes() as live:
        for parameter in policy.parameters():
            live.ignore(parameter)
            parameter.grad = torch.zeros_like(parameter)
        backward_microbatch(policy, batch, lambda log_probs, at: -log_probs)
    return live.most


def groups(prompt, response, size):
    """Two groups of `size` responses, on token ids that every vocabulary here has."""
    return pack(
        [
            TokenExample(tuple(range(first, first + prompt)), tuple(range(5, 5 + response)))
            for first in (10, 11)
            for _ in range(size)
        ]
    )


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("path", [TINY_QWEN2, EMBEDDED], ids=["tiny", "embedded"])
def test_activations_against_measurement(path, dtype, checkpointing, monkeypatch):
    monkeypatch.setitem(BLOCK_BYTES, "cpu", BLOCK_BYTES["cuda"])  # what is predicted is a GPU's memory
    shape = ModelShape.from_config(AutoConfig.from_pretrained(path))
    policy = Policy.load(path, dtype=dtype, activation_checkpointing=checkpointing)
    element = {"float32": 4, "bfloat16": 2}[dtype]
    copies = layer_copy_bytes(shape, element) * shape.layers
    for batch in (groups(prompt=40, response=25, size=4), groups(prompt=60, response=150, size=4)):
        row = Row.of_layout(batch.layout)
        saved = saved_activation_bytes(shape, row, element, checkpointing)
        if checkpointing:
            # The layers' inputs: the hooks do not see the cosines and sines among them.
            measured = saved_bytes(policy, batch) + row.tokens * 2 * shape.head_dim * 4
            assert measured == pytest.approx(saved, rel=0.02)
        else:
            assert saved_bytes(policy, batch) == pytest.approx(saved + copies, rel=0.05)

        hidden = row.tokens * 2 * shape.hidden * 4
        gradients = 4 * (shape.parameters + shape.head_parameters)
        forward = saved + gradients + copies + head_buffer_bytes(shape, row.tokens, element) + hidden
        backward_copies = layer_copy_bytes(shape, element) if checkpointing else copies
        backward = saved + gradients + backward_copies + layer_at_work_bytes(shape, row, element, checkpointing)
        assert max(forward, backward) == pytest.approx(most_bytes(policy, batch), rel=0.2)


def test_lasting_memory_by_hand(shape):
    one = predict_memory(shape, gpu=80 * GIB, row_tokens=100, longest=50, compute_bytes=2)
    assert (one.weights, one.optimizer, one.gradients) == (4 * PARAMETERS, 8 * PARAMETERS, 4 * PARAMETERS)
    assert (one.reference, one.kept_gradients, one.gathered, one.whole_weights, one.whole_optimizer) == (0,) * 5
    assert one.copies == one.backward_copies == 2 * 28 * LAYER
    assert (one.head_gradient, one.reserve) == (4 * HEAD, 4 * GIB)
    # A full chunk of 1,766 rows (2^30 / (4 * 151,936)) in bfloat16, three blocks of 2^26 bytes, the head in bfloat16,
    # and a product of the head's size.
    assert one.head_buffers == 1766 * 151936 * 2 + 3 * 2**26 + 2 * 2 * HEAD
    # In float32 the same rows, of twice the size. Ten rows, about 6 MB, are less than a block: four copies of them.
    assert head_buffer_bytes(shape, 2000, 4) == 1766 * 151936 * 4 + 3 * 2**26
    assert head_buffer_bytes(shape, 10, 4) == 4 * 10 * 151936 * 4
    reference = predict_memory(shape, gpu=1, row_tokens=1, longest=1, compute_bytes=4, keep_reference=True)
    assert (reference.reference, reference.copies) == (4 * PARAMETERS, 0)


def test_activations_a_token_by_hand(shape):
    # Qwen2.5-1.5B in bfloat16, responses of up to 1,000 positions, two keys a token. Attention and hidden are 1,536.
    layer = (
        4 * 1536 * 4 + 8  # residual stream and norms in float32
        + 5 * 1536 * 2 + 5 * 1536 * 2 + 12 * 4  # casts; q, k, v, attended twice; log-sum-exp
        + 4 * 8960 * 2  # the MLP
        + 3 * 2 * 1536 * 2 + 1000 * 2  # the keys and values that segments see, their masks
    )  # fmt: skip
    around = 2 * 1536 * 4 + 4 + 2 * 128 * 4 + 24
    kept = predict_memory(shape, gpu=1, row_tokens=1, longest=1000, compute_bytes=2)
    assert kept.saved_a_token == 28 * layer + around
    assert kept.work_a_token == 2 * 1536 * 4 + 2 * 8960 * 2
    again = predict_memory(shape, gpu=1, row_tokens=1, longest=1000, compute_bytes=2, checkpointing=True)
    assert again.saved_a_token == 28 * 1536 * 4 + around
    assert again.work_a_token == kept.work_a_token + layer
    assert again.backward_copies == 2 * LAYER


def test_ranks(shape):
    arguments: Any = {"gpu": 40 * GIB, "row_tokens": 100, "longest": 50, "compute_bytes": 2, "ranks": 4}
    ddp = predict_memory(shape, **arguments)
    assert (ddp.weights, ddp.kept_gradients) == (4 * PARAMETERS, 4 * PARAMETERS)
    assert set(ddp.phases) == {"forward", "backward", "rollouts"}
    fsdp = predict_memory(shape, **arguments, sharded=True)
    assert (fsdp.weights, fsdp.optimizer) == (PARAMETERS, 2 * PARAMETERS)
    assert (fsdp.gradients, fsdp.kept_gradients) == (4 * PARAMETERS, 0)
    assert fsdp.gathered == 4 * (HEAD + 2 * LAYER + 1536)
    checkpoint = fsdp.phases["checkpoint"]
    assert (checkpoint["whole weights"], checkpoint["whole moments"]) == (4 * PARAMETERS, 8 * PARAMETERS)
    assert fsdp.totals["checkpoint"] == 3 * PARAMETERS + 12 * PARAMETERS + 2 * GIB


def test_engine_bytes_by_hand(shape):
    # Keys and values of 28 layers, 2 heads of 128, 2 bytes each, for 64 sequences of 500 positions.
    cache = 2 * 28 * 2 * 128 * 2 * 64 * 500
    assert engine_bytes(shape, sequences=64, positions=500, element_bytes=2) == 2 * PARAMETERS + cache
    assert engine_bytes(shape, 1, 9999, 2) == engine_bytes(shape, 1, 4096, 2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_largest_budget_fits_and_the_next_does_not(shape, checkpointing):
    prediction = predict_memory(
        shape, gpu=40 * GIB, row_tokens=4096, longest=1280, compute_bytes=2, checkpointing=checkpointing
    )
    largest = prediction.largest_token_budget
    assert largest > 0
    assert largest % 64 == 0
    assert prediction.training(largest) <= 40 * GIB < prediction.training(largest + 64)
    assert replace(prediction, gpu=20 * GIB).largest_token_budget == 0


def test_training_in_float32_fails_when_the_moments_appear(shape):
    # Weights and gradients are 11.5 GiB of the first step; the second has 11.5 more. So 24 GiB are not enough.
    prediction = predict_memory(shape, gpu=24 * GIB, row_tokens=64, longest=64, compute_bytes=2, checkpointing=True)
    assert prediction.training(64) - prediction.optimizer < 24 * GIB < prediction.training(64)
    assert "shard them" in str(memory_advice(prediction, 64, checkpointing=True, shorten=""))


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({}, None),
        ({"gpu": 20 * GIB}, "moments alone are too much: shard them"),
        ({"row_tokens": 10**5}, "set --token-budget to [0-9]+ or less"),
        ({"row_tokens": 10**5, "longest": 9000}, "set --activation-checkpointing"),
        (
            {"row_tokens": 10**6, "longest": 10**6, "checkpointing": True},
            "one sequence is too much: lower --max-tokens; or shard them",
        ),
        ({"engine": 30 * GIB}, r"set --gpu-memory-utilization \(vLLM\) to 0.4[0-9] or less"),
        ({"engine": 30 * GIB, "engine_needs": 29 * GIB}, "no room for the rollout engine"),
        ({"engine": 2 * GIB}, "set --gpu-memory-utilization to 0.08 or more"),
    ],
)
def test_advice(shape, change, advice):
    arguments: Any = {"gpu": 40 * GIB, "row_tokens": 2560, "longest": 1280, "compute_bytes": 2}
    arguments |= {"engine": 12 * GIB, "engine_needs": 3 * GIB}
    arguments |= change
    given = memory_advice(
        predict_memory(shape, **arguments),
        arguments["longest"],
        bool(arguments.get("checkpointing")),
        shorten="lower --max-tokens",
    )
    assert (given is None) == (advice is None)
    if advice:
        assert re.search(advice, str(given))


def test_the_largest_engine_share_fits(shape):
    prediction = predict_memory(
        shape, gpu=40 * GIB, row_tokens=2560, longest=1280, compute_bytes=2, engine=30 * GIB, ranks=4
    )
    share = prediction.largest_engine_share
    for hundredths, fits in ((0, True), (0.01, False)):
        engine = int((share + hundredths) * 40 * GIB)
        assert (replace(prediction, engine=engine).total <= 40 * GIB) == fits


def test_table(shape):
    table = memory_table(predict_memory(shape, gpu=40 * GIB, row_tokens=2560, longest=1280, compute_bytes=2))
    lines = table.splitlines()
    assert lines[0] == "predicted memory of each GPU, in GiB, of 40.00"
    assert lines[1].split() == ["forward", "backward", "rollouts"]
    assert lines[2].split() == ["weights,", "float32", "5.75", "5.75", "5.75"]
    assert "initial policy" not in table
    assert lines[5].split() == ["gradients,", "float32", "5.75", "5.75", "-"]
    assert len({len(line) for line in lines[1:-1]}) == 1


def grpo(**options):
    run = RunConfig(model=str(TINY_QWEN2), dry_run=True, gpu_memory_gib=8, **options)
    return GRPOConfig(run=run, optimizer=OptimizerConfig(token_budget=4096))


def predicted(config):
    return predict_run(config, config.longest_example())


def test_a_dry_run_prints_the_table_and_does_not_train(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "parse_options", lambda *_: grpo())
    command_line.run_command(GRPOConfig, None, lambda _: pytest.fail("trained"))
    assert "predicted memory of each GPU, in GiB, of 8.00" in capsys.readouterr().out


def test_a_run_that_does_not_fit_is_refused_after_the_table(capsys):
    with pytest.raises(UsageError, match="--gpu-memory-utilization"):
        check_memory(grpo(gpu_memory_utilization=0.98))
    assert "rollout engine" in capsys.readouterr().out


def test_the_microbatch_of_the_options(monkeypatch):
    # The handout's: 256 rollouts in 128 microbatches; each has a prompt of 256 and a response of 1,024 tokens at most.
    handout = GRPOConfig(run=RunConfig(model=str(TINY_QWEN2)))
    assert predicted(handout).row_tokens == 2 * (256 + 1024)
    assert predicted(handout).gpu == 40 * GIB
    assert predicted(grpo()).row_tokens == 4096
    assert predicted(grpo(max_tokens=5000)).row_tokens == 5256
    assert predicted(replace(handout, kl_coef=0.1)).reference == 4 * 92864
    sharded = replace(handout, run=replace(handout.run, sharding="fsdp2"))
    alone = predicted(sharded)
    assert (alone.weights, alone.whole_optimizer) == (4 * 92864, 0)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert predicted(sharded).weights == 92864
    assert predicted(handout).weights == 4 * 92864


def test_the_microbatch_of_traces_is_that_of_the_longest(tmp_path):
    # 32 examples in 16 microbatches: two each. The longer response decides.
    data = tmp_path / "traces.jsonl"
    rows = [{"prompt": "x", "response": " y" * count} for count in (3, 200)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunConfig(model=str(TINY_QWEN2), max_tokens=8)
    optimizer = OptimizerConfig(gradient_accumulation_steps=16)
    sft = SFTConfig(run=run, optimizer=optimizer, sft=SFTStepsConfig(batch_size=32), data=data)
    tokenizer = AutoTokenizer.from_pretrained(TINY_QWEN2)
    longest = len(tokenizer("x")["input_ids"]) + len(tokenizer(" y" * 200)["input_ids"]) + 1  # EOS
    assert longest > 200
    assert predicted(sft).row_tokens == 2 * longest
