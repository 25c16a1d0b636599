"""Small stand-ins: a float64-clean language model that packs, a tokenizer, an engine that says what it is told."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cs336_alignment.rollout.engine import Completion, Sampling, WeightSum
from cs336_alignment.training.packing import packed_attention


class FakeBody(nn.Module):
    """Tokens and positions, one layer of attention with two query heads to a key head, a nonlinearity."""

    checkpointing = False

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(64, width)
        self.mix = nn.Linear(width, 2 * width)

    def forward(self, input_ids: Tensor, position_ids: Tensor, layout: Any = None, **_: Any) -> Any:
        hidden = self.tokens(input_ids) + self.positions(position_ids)
        if self.checkpointing:
            return SimpleNamespace(last_hidden_state=checkpoint(self.layer, hidden, layout, use_reentrant=False))
        return SimpleNamespace(last_hidden_state=self.layer(hidden, layout))

    def layer(self, hidden: Tensor, layout: Any) -> Tensor:
        width = hidden.shape[-1]
        query, key, value = self.mix(hidden).split([width, width // 2, width // 2], dim=-1)

        def heads(tensor: Tensor) -> Tensor:
            return tensor.unflatten(-1, (-1, width // 2)).transpose(1, 2)

        attended = packed_attention(self, heads(query), heads(key), heads(value), None, layout=layout)[0]
        return torch.tanh(hidden + attended.flatten(2))


class FakeLM(nn.Module):
    """What `Policy` needs of a Hugging Face causal language model, in float64 throughout."""

    def __init__(self, vocab_size: int = 23, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.base_model = FakeBody(vocab_size, width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.double()

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def save_pretrained(self, folder: Path, state_dict: dict[str, Tensor], max_shard_size: str) -> None:
        save_file(state_dict, folder / "model.safetensors")


class FakeTokenizer:
    """A token a character: letters, digits and the signs of the r1_zero format; the last id is EOS."""

    pad_token_id: int | None = None
    characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;?!'\"<>/_-()\n=+*#&"
    eos_token_id = len(characters)

    def __len__(self) -> int:
        return len(self.characters) + 1

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [self.characters.index(character) for character in text]}

    def save_pretrained(self, folder: Path) -> None: ...


class FakeEngine:
    """Returns the completions that it was made with, and holds the weights that it is given."""

    def __init__(self, completions: Sequence[Completion] = ()) -> None:
        self.completions = list(completions)
        self.held: dict[str, list[WeightSum]] = {}
        self.policy_version = 0
        self.dtype = "float32"
        self.description: dict[str, str | int] = {"engine": "fake", "dtype": "float32"}

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[list[Completion]]:
        return [[self.completions[position]] * sampling.n for position in range(len(prompts))]

    def load_policy(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.held = {name: [WeightSum.of(weight)] for name, weight in weights}
        self.policy_version = version

    def held_weights(self) -> dict[str, list[WeightSum]]:
        return self.held

    def forget_prompts(self) -> None: ...

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> "FakeEngine":
        return self

    def __exit__(self, *exception: object) -> None: ...


class TalkingEngine(FakeEngine):
    """Answers each prompt with its place in the whole batch and the number of the draw."""

    sampling = Sampling(n=2, stop=())

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[list[Completion]]:
        return [
            [_say(f"{sampling.first_position + place}-{draw}") for draw in range(sampling.n)]
            for place in range(len(prompts))
        ]


def _say(text: str) -> Completion:
    ids = tuple(FakeTokenizer()(text)["input_ids"])
    return Completion(text, ids, (-1.0,) * len(ids), "stop")
