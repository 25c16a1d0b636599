"""What the parts of a run take of a GPU's memory: by hand, and against what torch allocates on a CPU."""

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Olmo2Config, Qwen2Config

from cs336_alignment.training import memory
from cs336_alignment.training.memory import (
    Arrangement,
    Engine,
    ModelShape,
    Row,
    embedding_gradient_bytes,
    engine_cache_bytes,
    gathered_bytes,
    head_buffer_bytes,
    head_gradient_bytes,
    layer_activation_bytes,
    saved_activation_bytes,
    waiting_head_gradient_bytes,
    weight_copy_bytes,
)
from cs336_alignment.training.memory_phases import RESERVE, MemoryPrediction, ProofSize
from cs336_alignment.training.packing import PACKED_ATTENTION, Layout, Segment
from cs336_alignment.training.policy import Policy
from tests.common import REPOSITORY, TINY_QWEN2
from tests.memory_worker import CASES, CONFIGS, batch_of, groups, measure_all
from tests.test_distributed import launch

EMBEDDED = REPOSITORY / "data/policy"
# The public configs' numbers.
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
QWEN_7B = Qwen2Config(
    hidden_size=3584,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    intermediate_size=18944,
    vocab_size=152064,
    tie_word_embeddings=False,
    max_position_embeddings=32768,
)
OLMO_1B = Olmo2Config(
    hidden_size=2048,
    num_hidden_layers=16,
    num_attention_heads=16,
    num_key_value_heads=16,
    intermediate_size=8192,
    vocab_size=100352,
    tie_word_embeddings=False,
    max_position_embeddings=4096,
)
LAYER = 1536 * 1536 + 1536 + 2 * (1536 * 256 + 256) + 1536 * 1536 + 3 * 1536 * 8960 + 2 * 1536
HEAD = 151936 * 1536
PARAMETERS = HEAD + 28 * LAYER + 1536
OLMO_LAYER = 4 * 2048 * 2048 + 3 * 2048 * 8192 + 4 * 2048
OLMO_PARAMETERS = 2 * 100352 * 2048 + 16 * OLMO_LAYER + 2048
ONE = Arrangement(compute_bytes=2)
FOUR = Arrangement(compute_bytes=2, shards=4)


@pytest.fixture(scope="module")
def shape():
    return ModelShape.from_config(QWEN_1_5B)


@pytest.fixture(scope="module")
def olmo():
    return ModelShape.from_config(OLMO_1B)


def test_parameters(shape, olmo):
    assert shape.parameters == PARAMETERS == 1_543_714_304
    assert (shape.layer_parameters, shape.head_parameters, shape.head_dim) == (LAYER, HEAD, 128)
    assert (shape.root_parameters, shape.stored_parameters) == (HEAD + 1536, PARAMETERS + HEAD)
    assert olmo.parameters == OLMO_PARAMETERS == 1_484_916_736
    assert (olmo.layer_parameters, olmo.stored_parameters) == (OLMO_LAYER, OLMO_PARAMETERS)
    assert (shape.norms_after, olmo.norms_after) == (False, True)


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["qwen2", "olmo2"])
def test_what_is_kept_for_the_backward_pass(name, dtype):
    """What autograd says, all but."""
    shape, batch = ModelShape.from_config(CONFIGS[name]), batch_of(name)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=PACKED_ATTENTION).float().eval()
    compute = torch.bfloat16 if dtype == "bfloat16" else None
    policy = Policy(model, range(shape.vocab), compute_dtype=compute)
    how = Arrangement(compute_bytes=2 if compute else 4)
    predicted = saved_activation_bytes(shape, how, Row.of_layout(batch.layout))
    assert saved_bytes(policy, batch) == pytest.approx(
        predicted + weight_copy_bytes(shape, how, shape.layers), rel=0.03
    )


def predicted_of(case, shards):
    """All that a case of memory_worker takes, without the reserve: of the row as it is packed there."""
    name, dtype, checkpointing = case
    shape, row, scored = ModelShape.from_config(CONFIGS[name]), Row.of_layout(batch_of(name).layout), groups(name, True)
    weights = 2 * shape.stored_parameters  # of the worker's engine, which has a tied head twice
    prediction = MemoryPrediction(
        shape,
        Arrangement({"float32": 4, "bfloat16": 2}[dtype], shards, checkpointing),
        gpu=0,
        row_tokens=row.tokens,
        longest=row.pairs // row.tokens,
        proof=ProofSize(sum(map(len, (e.prompt_ids + e.response_ids for e in scored))), 16 * len(scored)),
        engine=Engine(weights, weights, 0, copies=0, element_bytes=2),
    )
    totals = {phase: total - RESERVE for phase, total in prediction.totals.items()}
    return totals | {"backward": max(totals["backward"], totals["embedding"])}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    launch(["-m", "tests.memory_worker", str(folder / "two.json")])
    return {1: measure_all(folder), 2: json.loads((folder / "two.json").read_text())}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
@pytest.mark.parametrize("ranks", [1, 2])
def test_phases_against_what_is_allocated(ranks, case, measured, monkeypatch):
    """A step, a sync and a proof, of the whole policy and of two shards, within a tenth. (A checkpoint's weights stay
    on the device that they come from here, for it is a CPU.)"""
    row = Row.of_layout(batch_of(case[0]).layout)
    monkeypatch.setattr(memory, "KEYS_PER_TOKEN", row.keys / row.tokens)
    live, predicted = measured[ranks][" ".join(map(str, case))], predicted_of(case, ranks)
    for phase in ("forward", "backward", "sync", "proof"):
        assert predicted[phase] == pytest.approx(live[phase], rel=0.1), phase
    # The sums of the weights are taken before the proof's scores, and never take more.
    assert live["sums"] <= 1.01 * live["proof"]
    assert live["after"] == pytest.approx(predicted["rollouts"], rel=0.01)


def test_parts_by_hand_of_one_gpu(shape, olmo):
    assert weight_copy_bytes(shape, ONE, 28) == 2 * 28 * LAYER
    assert weight_copy_bytes(shape, Arrangement(4), 28) == gathered_bytes(shape, ONE, 3) == 0
    # A full chunk of 1,766 rows (2^30 / (4 * 151,936)) in bfloat16, three blocks of 2^26 bytes, the head in bfloat16.
    assert head_buffer_bytes(shape, ONE, 5000) == 1766 * 151936 * 2 + 3 * 2**26 + 2 * HEAD
    # Ten rows, about 6 MB, are less than a block: four copies of them in float32.
    assert head_buffer_bytes(shape, Arrangement(4), 10) == 4 * 10 * 151936 * 4
    assert head_gradient_bytes(shape, ONE) == 4 * HEAD + 2 * HEAD
    # A tied head's gradient waits for the embedding's, and the two for their sum; an untied one's joins at once.
    assert waiting_head_gradient_bytes(shape, ONE) == 4 * HEAD
    assert embedding_gradient_bytes(shape, ONE) == 3 * 4 * HEAD
    assert waiting_head_gradient_bytes(olmo, ONE) == 0
    assert embedding_gradient_bytes(olmo, ONE) == 4 * 100352 * 2048


def test_parts_by_hand_of_four_gpus(shape):
    assert weight_copy_bytes(shape, FOUR, 28) == 0
    assert gathered_bytes(shape, FOUR, 3) == 2 * (HEAD + 1536 + 3 * LAYER)
    assert head_buffer_bytes(shape, FOUR, 5000) == 1766 * 151936 * 2 + 3 * 2**26
    assert waiting_head_gradient_bytes(shape, FOUR) == 2 * HEAD
    # In bfloat16, in float32 on its way to the other ranks, and this rank's quarter of the sum.
    assert embedding_gradient_bytes(shape, FOUR) == (2 + 4 + 1) * (HEAD + 1536)


def test_activations_a_token_by_hand(shape, olmo):
    # In bfloat16, responses of up to 1,000 positions, three keys a token. Attention and hidden are 1,536.
    row = Row(1, 3, 1000)
    rest = (
        5 * 1536 * 2 + 12 * 4  # q, k, v, attended twice; log-sum-exp
        + 4 * 8960 * 2  # the MLP
        + 3 * 2 * 1536 * 2 + 1000 * 2  # the keys and values that segments see, their masks
    )  # fmt: skip
    # Two norms: their inputs in float32, these divided by their root mean square, which is one number; their outputs,
    # cast five times by autocast.
    one = 2 * 1536 * 4 + 2 * 1536 * 4 + 2 * 4 + 5 * 1536 * 2
    assert layer_activation_bytes(shape, ONE, row) == one + rest
    four = 2 * 1536 * 4 + 2 * 1536 * 2 + 2 * 4 + 2 * 1536 * 2
    assert layer_activation_bytes(shape, FOUR, row) == four + rest
    # Four norms, in float32 up to their weight; 16 heads of 128 for queries and keys alike.
    after = 4 * 2048 * 4 + 4 * 2048 * 4 + 4 * 4 + 2 * 2048 * 2
    others = 5 * 2048 * 2 + 16 * 4 + 4 * 8192 * 2 + 3 * 2 * 2048 * 2 + 1000 * 2
    assert layer_activation_bytes(olmo, FOUR, row) == after + others
    around = 1536 * 4 + 1536 * 2 + 4 + 2 * 128 * 2 + 24
    assert saved_activation_bytes(shape, FOUR, row) == 28 * (four + rest) + around
    again = Arrangement(compute_bytes=2, shards=4, checkpointing=True)
    assert saved_activation_bytes(shape, again, row) == 28 * 1536 * 2 + around


def test_cache_by_hand(shape):
    # Keys and values of 28 layers, 2 heads of 128, 2 bytes each, for 64 sequences of 500 positions.
    whole = 2 * 28 * 2 * 128 * 2 * 64 * 500
    assert engine_cache_bytes(shape, 64, 500, 2) == whole
    assert engine_cache_bytes(shape, 1, 9999, 2) == engine_cache_bytes(shape, 1, 4096, 2)
    # Two key-value heads lie on two of four GPUs, and again on the other two.
    assert engine_cache_bytes(shape, 64, 500, 2, tensor_parallel=4) == whole // 2


def prediction(shape, how, engine: Any = None, **values):
    given: Any = {"gpu": 40 * 2**30, "row_tokens": 4096, "longest": 1280} | values
    engine = engine or Engine(2 * PARAMETERS, 10 * 2**30, 3 * 2**30, copies=2 * HEAD, element_bytes=2)
    return MemoryPrediction(shape, how, proof=ProofSize(1088, 64), engine=engine, **given)


def test_what_stays_in_memory_by_hand(shape):
    one = prediction(shape, Arrangement(2, keep_reference=True))
    four = prediction(shape, Arrangement(2, shards=4, keep_reference=True))
    assert one.totals["rollouts"] == (4 + 8 + 4) * PARAMETERS + RESERVE + 10 * 2**30
    assert four.totals["rollouts"] == (4 + 8 + 4) * PARAMETERS // 4 + RESERVE + 10 * 2**30
    assert four.totals["step"] == four.totals["rollouts"] - 10 * 2**30 + PARAMETERS


def test_a_sync_and_a_checkpoint_by_hand(shape):
    """The engine's cache sleeps while weights are loaded, all of it while they are written."""
    lasting = 12 * PARAMETERS
    on_its_way = 2 * HEAD  # in bfloat16; vLLM lays it out once more
    assert prediction(shape, ONE).totals["sync"] == lasting + RESERVE + 2 * PARAMETERS + 2 * on_its_way
    shard, whole = 2 * HEAD // 4, 2 * HEAD
    assert prediction(shape, FOUR).totals["sync"] == lasting // 4 + RESERVE + 2 * PARAMETERS + shard + whole + 2 * HEAD
    assert prediction(shape, ONE).totals["checkpoint"] == lasting + RESERVE
    assert prediction(shape, FOUR).totals["checkpoint"] == lasting // 4 + RESERVE + 4 * HEAD


@pytest.mark.parametrize("how", [ONE, FOUR, Arrangement(2, checkpointing=True)], ids=["one", "four", "checkpointed"])
def test_the_largest_budget_fits_and_the_next_does_not(shape, how):
    one = prediction(shape, how)
    largest = one.largest_token_budget
    assert largest > 0
    assert largest % 64 == 0
    assert one.training(largest) <= one.gpu < one.training(largest + 64)
    assert prediction(shape, how, gpu=9 * 2**30).largest_token_budget == 0


@pytest.mark.parametrize("how", [ONE, FOUR], ids=["one", "four"])
def test_the_largest_engine_share_fits_and_the_next_does_not(shape, how):
    share = prediction(shape, how).largest_engine_share
    for hundredths, fits in ((0, True), (0.01, False)):
        engine = Engine(2 * PARAMETERS, int((share + hundredths) * 40 * 2**30), 0, 0, 2)
        one = prediction(shape, how, engine)
        assert (max(one.totals["proof"], one.totals["rollouts"]) <= one.gpu) == fits


def test_training_fails_when_the_moments_appear(shape):
    """The first step of a run on a GPU of 28 GiB fits without them, and the second does not."""
    one = prediction(shape, Arrangement(2, checkpointing=True), gpu=28 * 2**30)
    assert one.training(64) - 8 * PARAMETERS < one.gpu < one.training(64)
