"""Fixtures, the snapshot comparison, and the run-time check of every shape annotation in the package."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import shape_checker, snapshot_cases
from tests.common import SNAPSHOTS_PATH, TINY_QWEN2

# Every shape in a signature is checked, in the rooms that handle tensors; they are imported after this.
install_import_hook(
    [f"cs336_alignment.{room}" for room in ("numerics", "rollout.decoding", "rollout.transformers_engine", "training")],
    f"{shape_checker.__name__}.check",
)
# No wall time decides a test.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--snapshot-exact",
        action="store_true",
        help="compare with the snapshots at rtol 1e-6, atol 1e-7 instead of rtol 1e-4, atol 1e-2. Not to the last bit: "
        "the snapshots come from float64 references (tests/make_snapshots.py), the code under test runs in float32.",
    )


class NumpySnapshot:
    """Compares with `_snapshots/<test name>.npz`, as the course's fixture of the same name does."""

    def __init__(self, test_name: str, exact: bool) -> None:
        self._test_name = test_name
        self._rtol, self._atol = (1e-6, 1e-7) if exact else (1e-4, 1e-2)

    def assert_match(self, actual: Mapping[str, Any]) -> None:
        with np.load(SNAPSHOTS_PATH / f"{self._test_name}.npz") as expected:
            assert set(actual) == set(expected.files)
            for name in expected.files:
                value = actual[name]
                array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
                assert array.shape == expected[name].shape, name
                np.testing.assert_allclose(array, expected[name], self._rtol, self._atol, err_msg=name)


@pytest.fixture
def numpy_snapshot(request: pytest.FixtureRequest) -> NumpySnapshot:
    return NumpySnapshot(request.node.name, bool(request.config.getoption("--snapshot-exact")))


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """The snapshot inputs as tensors; `policy_log_probs` takes a gradient."""
    tensors = {name: torch.from_numpy(array) for name, array in snapshot_cases.tensors().items()}
    tensors["policy_log_probs"].requires_grad_()
    return tensors


@pytest.fixture
def reward_fn() -> Callable[[str, str], dict[str, float]]:
    return snapshot_cases.reward_fn


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Byte-level, no BOS, pad == EOS: as Qwen2.5's."""
    return AutoTokenizer.from_pretrained(TINY_QWEN2)


@pytest.fixture
def bos_tokenizer() -> Any:
    """The same tokenizer, but it puts BOS before every text that asks for special tokens: as Llama's."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(TINY_QWEN2)
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY_QWEN2).eval()
