"""A short form of scripts/fuzz_grader.py: the same properties, a few hundred examples."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "fuzz_grader.py"
spec = importlib.util.spec_from_file_location("fuzz_grader", SCRIPT)
assert spec is not None
assert spec.loader is not None
fuzz_grader = importlib.util.module_from_spec(spec)
sys.modules["fuzz_grader"] = fuzz_grader
spec.loader.exec_module(fuzz_grader)


@pytest.mark.parametrize("name", fuzz_grader.PROPERTIES)
def test_property(name: str):
    fuzz_grader.run(name, examples=150, seed_value=0)
