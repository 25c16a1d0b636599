"""A rollout engine on plain transformers: runs anywhere, and the same seed gives the same bits on a CPU.

Prompts are sorted by length, padded on the left and run in batches with a key-value cache (decoding.py). What all
prompts of a batch begin with is computed once, each prompt once for its n completions; finished sequences leave.
Every completion draws from a random stream of its own, so that what it says does not depend on its neighbours (beyond
the float noise of another batch shape).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from jaxtyping import Float, Float64, Int
from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, AutoTokenizer, Cache, PreTrainedTokenizerBase

from cs336_alignment.numerics.log_probs import sampling_logits
from cs336_alignment.numerics.tokenization import padding_id
from cs336_alignment.rollout.decoding import has_window, join_caches, roomy_cache, use_decoding_attention
from cs336_alignment.rollout.engine import Completion, Sampling, WeightSum, check_prompt_lengths

Dtype = Literal["auto", "float32", "bfloat16"]
MAX_BATCH_SIZE = 64
PROMPTS_AT_ONCE = 8
"""Prompts of similar length that are run together: enough tokens for the matrix products, and little padding."""
CDF_BLOCK = 128
"""Probabilities that are added up at once in `invert_cdf`; it divides the vocabulary of most models."""


@dataclass
class _Sequence:
    """One completion in the making."""

    prompt: int
    max_tokens: int
    uniforms: Float64[np.ndarray, "max_tokens"]
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    completion: Completion | None = None


class TransformersEngine:
    """See the module's page. `load_policy` copies the weights into a model of its own."""

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: Dtype = "auto",
        max_batch_size: int = MAX_BATCH_SIZE,
        progress: bool = False,
    ) -> None:
        """Load a model and its tokenizer onto the GPU, or the CPU where there is none.

        Args:
            model: a Hugging Face directory or hub name.
            dtype: of weights and compute; "auto" is bfloat16 on a GPU, float32 on a CPU.
            max_batch_size: sequences that run at once; the n completions of one prompt always run together.
            progress: show a progress bar on standard error.
        """
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        self.dtype = dtype
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        self.model.to(self.device).eval()
        use_decoding_attention(self.model)
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model)
        self._policy_version = 0
        self._max_batch_size = max_batch_size
        self._show_progress = progress
        self._eos_ids = _eos_ids(self.model, self.tokenizer)

    @property
    def policy_version(self) -> int:
        return self._policy_version

    @property
    def description(self) -> dict[str, str | int]:
        return {"engine": f"transformers {transformers.__version__}", "dtype": self.dtype}

    @torch.no_grad()
    def load_policy(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.wake()
        missing = self.model.state_dict()
        for name, tensor in weights:
            missing.pop(name).copy_(tensor)
        if missing:
            raise KeyError(f"the policy was given without {', '.join(missing)}")
        self._policy_version = version

    def held_weights(self) -> dict[str, list[WeightSum]]:
        return {name: [WeightSum.of(tensor)] for name, tensor in self.model.state_dict().items()}

    def forget_prompts(self) -> None:
        """Nothing is kept between two calls."""

    def sleep(self) -> None:
        self.model.to("cpu")

    def wake(self) -> None:
        self.model.to(self.device)

    def close(self) -> None:
        del self.model

    def __enter__(self) -> "TransformersEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @torch.inference_mode()
    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[list[Completion]]:
        prompt_ids: list[list[int]] = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]  # type: ignore[misc]
        check_prompt_lengths([len(ids) for ids in prompt_ids], self.model.config.max_position_embeddings)
        by_length = sorted(range(len(prompts)), key=lambda prompt: len(prompt_ids[prompt]))
        prompts_a_batch = max(1, self._max_batch_size // sampling.n)
        completions: list[list[Completion]] = [[] for _ in prompts]
        with Progress(transient=True, disable=not self._show_progress) as progress:
            task = progress.add_task("generating", total=len(prompts) * sampling.n)
            for start in range(0, len(prompts), prompts_a_batch):
                batch = by_length[start : start + prompts_a_batch]
                for sequence in self._generate_batch(batch, [prompt_ids[prompt] for prompt in batch], sampling):
                    progress.advance(task)
                    assert sequence.completion is not None
                    completions[sequence.prompt].append(sequence.completion)
        return completions

    def _generate_batch(self, prompts: list[int], prompt_ids: list[list[int]], sampling: Sampling) -> list[_Sequence]:
        """Run `n` sequences for each of these prompts to their ends."""
        sequences = []
        for prompt, ids in zip(prompts, prompt_ids, strict=True):
            max_tokens = min(sampling.max_tokens, self.model.config.max_position_embeddings - len(ids))
            position = sampling.first_position + prompt
            for draw in range(sampling.n):
                uniforms = 1.0 - np.random.default_rng((sampling.seed, position, draw)).random(sampling.max_tokens)
                sequences.append(_Sequence(prompt, max_tokens, uniforms))
        logits, cache, attention_mask = self._prefill(prompt_ids, sampling.n)
        active = list(sequences)
        for step in range(max(sequence.max_tokens for sequence in sequences)):
            token_ids = self._sample(logits, active, step, sampling)
            for sequence in active:
                if sequence.completion is None:
                    sequence.completion = self._completion_if_finished(sequence, sampling)
            rows = _rows_to_keep([sequence.completion is not None for sequence in active])
            if not rows:
                break
            if len(rows) < len(active):
                kept = torch.tensor(rows, device=self.device)
                cache.batch_select_indices(kept)
                attention_mask, token_ids = attention_mask[kept], token_ids[kept]
                active = [active[row] for row in rows]
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(active), 1)], dim=1)
            logits = self._forward(token_ids.unsqueeze(1), attention_mask, cache)
        return sequences

    def _prefill(self, prompt_ids: list[list[int]], n: int) -> tuple[Tensor, Cache, Tensor]:
        """Run each prompt once, what all begin with once for all; repeat its logits and keys for n sequences."""
        # Padding lies between the stem and the rest of a prompt.
        stem = [] if has_window(self.model.config) else _common_beginning(prompt_ids)
        stem_cache = roomy_cache(self.model.config)
        if stem:
            self._forward(*self._padded([stem]), stem_cache)
        logits, masks, caches = [], [], []
        for start in range(0, len(prompt_ids), PROMPTS_AT_ONCE):
            ids, mask = self._padded([prompt[len(stem) :] for prompt in prompt_ids[start : start + PROMPTS_AT_ONCE]])
            masks.append(pad(mask, (len(stem), 0), value=1))
            caches.append(join_caches([stem_cache], len(ids)) if stem else roomy_cache(self.model.config))
            logits.append(self._forward(ids, masks[-1], caches[-1]))
        width = max(mask.shape[1] for mask in masks)
        attention_mask = torch.cat([pad(mask, (width - mask.shape[1], 0)) for mask in masks])
        repeated_logits = torch.cat(logits).repeat_interleave(n, dim=0)
        return repeated_logits, join_caches(caches, n), attention_mask.repeat_interleave(n, dim=0)

    def _padded(self, token_ids: list[list[int]]) -> tuple[Int[Tensor, "batch width"], Int[Tensor, "batch width"]]:
        """Ids padded on the left, and a mask with 1 where there is a token."""
        width = max(map(len, token_ids))
        ids = torch.full((len(token_ids), width), padding_id(self.tokenizer))
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(token_ids):
            ids[row, width - len(sequence) :] = torch.tensor(sequence)
            mask[row, width - len(sequence) :] = 1
        return ids.to(self.device), mask.to(self.device)

    def _forward(
        self, ids: Int[Tensor, "batch new"], attention_mask: Int[Tensor, "batch total"], cache: Cache
    ) -> Float[Tensor, "batch vocab"]:
        """Logits after the last of the new tokens. Padding on the left must not shift positions."""
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self.model(
            ids,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _sample(
        self, logits: Float[Tensor, "batch vocab"], active: list[_Sequence], step: int, sampling: Sampling
    ) -> Int[Tensor, "batch"]:
        """Draw the next token of every sequence, and note it on those that are not finished."""
        logits = sampling_logits(logits, sampling.temperature or 1.0, len(self.tokenizer))
        if step < sampling.min_tokens:
            logits[:, self._eos_ids] = float("-inf")
        if sampling.top_p < 1 and sampling.temperature > 0:
            logits = keep_top_p(logits, sampling.top_p)
        log_probs = torch.log_softmax(logits, dim=-1)
        if sampling.temperature == 0:
            token_ids = log_probs.argmax(dim=-1)
        else:
            uniforms = torch.tensor([sequence.uniforms[step] for sequence in active], device=self.device)
            token_ids = invert_cdf(log_probs.exp(), uniforms)
        chosen = log_probs.gather(1, token_ids.unsqueeze(1)).squeeze(1)
        for sequence, token_id, log_prob in zip(active, token_ids.tolist(), chosen.tolist(), strict=True):
            if sequence.completion is None:
                sequence.token_ids.append(token_id)
                sequence.log_probs.append(log_prob)
        return token_ids

    def _completion_if_finished(self, sequence: _Sequence, sampling: Sampling) -> Completion | None:
        token_ids = sequence.token_ids
        stopped = self._text_to_stop_string(token_ids, sampling)
        ended = stopped is not None or token_ids[-1] in self._eos_ids
        if not ended and len(token_ids) < sequence.max_tokens:
            return None
        text = self._decode(token_ids) if stopped is None else stopped
        return Completion(text, tuple(token_ids), tuple(sequence.log_probs), "stop" if ended else "length")

    def _text_to_stop_string(self, token_ids: list[int], sampling: Sampling) -> str | None:
        """The text up to and with the first stop string that the last token completed; None where it completed none."""
        if len(token_ids) <= sampling.min_tokens or not sampling.stop:
            return None
        # The tail decides whether to look closer: a token has a byte or more, and a character at most four.
        tail = self._decode(token_ids[-(max(len(stop.encode()) for stop in sampling.stop) + 4) :])
        if not any(stop in tail for stop in sampling.stop):
            return None
        text, before = self._decode(token_ids), self._decode(token_ids[:-1])
        starts = {stop: text.find(stop, max(0, len(before) - len(stop) + 1)) for stop in sampling.stop}
        ends = [start + len(stop) for stop, start in starts.items() if start >= 0]
        return text[: min(ends)] if ends else None

    def _decode(self, token_ids: list[int]) -> str:
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def keep_top_p(logits: Float[Tensor, "batch vocab"], top_p: float) -> Float[Tensor, "batch vocab"]:
    """-inf for every token outside the smallest set whose probability reaches top_p (Holtzman et al. 2020)."""
    ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    outside = ordered.cumsum(dim=-1) - ordered >= top_p
    return logits.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), float("-inf"))


def invert_cdf(probs: Float[Tensor, "batch vocab"], uniforms: Float64[Tensor, "batch"]) -> Int[Tensor, "batch"]:
    """The first token at which the cumulative probability reaches each uniform number.

    With numbers in (0, 1], not [0, 1), it is never a token of probability 0, nor one past the end. Sums are float64.
    First the block of tokens is found, then the token in it, so that one block alone is summed token by token.
    """
    blocks = pad(probs, (0, -probs.shape[1] % CDF_BLOCK)).unflatten(1, (-1, CDF_BLOCK))
    ends = blocks.sum(dim=2, dtype=torch.float64).cumsum(dim=1)
    reached = uniforms.unsqueeze(1) * ends[:, -1:]
    block = torch.searchsorted(ends, reached)
    before = pad(ends, (1, 0)).gather(1, block)
    cdf = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].double().cumsum(dim=1)
    # Rounding may leave the block's own sum a little short of the number that lies in it.
    return (block * CDF_BLOCK + torch.searchsorted(cdf, (reached - before).minimum(cdf[:, -1:])))[:, 0]


def _common_beginning(prompt_ids: list[list[int]]) -> list[int]:
    """What all prompts begin with, less a last token of each; nothing where there is one prompt alone."""
    if len(prompt_ids) == 1:
        return []
    columns = zip(*(prompt[:-1] for prompt in prompt_ids), strict=False)
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]


def _rows_to_keep(finished: Sequence[bool]) -> list[int]:
    """Of the rows of a batch those that go on, in their places but for the last ones, which fill the gaps."""
    going_on = [row for row, done in enumerate(finished) if not done]
    last = [row for row in going_on if row >= len(going_on)]
    return [last.pop() if finished[place] else place for place in range(len(going_on))]


def _eos_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a response: the generation config's, which may list several, and the tokenizer's."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({token_id for token_id in [*ids, tokenizer.eos_token_id] if token_id is not None})
