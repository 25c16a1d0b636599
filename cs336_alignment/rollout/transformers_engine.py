"""A rollout engine on plain transformers: runs anywhere, and the same seed gives the same bits on a CPU.

Prompts are sorted by length, padded on the left and run in batches with a key-value cache; each prompt is computed once
for its n completions, and finished sequences leave the batch. Every completion draws from a random stream of its own,
so that what it says does not depend on its neighbours (beyond the float noise of another batch shape).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from jaxtyping import Float, Float64, Int
from rich.progress import Progress
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedTokenizerBase

from cs336_alignment.numerics.log_probs import sampling_logits
from cs336_alignment.numerics.tokenization import padding_id
from cs336_alignment.rollout.engine import Completion, Sampling, WeightSum, check_prompt_lengths

Dtype = Literal["auto", "float32", "bfloat16"]
MAX_BATCH_SIZE = 64


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
            unfinished = [row for row, sequence in enumerate(active) if sequence.completion is None]
            if not unfinished:
                break
            # Dropping rows copies the cache, so wait until it saves a quarter of the batch.
            if len(unfinished) <= 0.75 * len(active):
                kept = torch.tensor(unfinished, device=self.device)
                cache.batch_select_indices(kept)
                attention_mask, token_ids = attention_mask[kept], token_ids[kept]
                active = [active[row] for row in unfinished]
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(active), 1)], dim=1)
            logits = self._forward(token_ids.unsqueeze(1), attention_mask, cache)
        return sequences

    def _prefill(self, prompt_ids: list[list[int]], n: int) -> tuple[Tensor, DynamicCache, Tensor]:
        """Run each prompt once; repeat its logits and keys for the n sequences that continue it."""
        width = max(map(len, prompt_ids))
        ids = torch.full((len(prompt_ids), width), padding_id(self.tokenizer))
        attention_mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompt_ids):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            attention_mask[row, width - len(prompt) :] = 1
        cache = DynamicCache(config=self.model.config)
        attention_mask = attention_mask.to(self.device)
        logits = self._forward(ids.to(self.device), attention_mask, cache)
        cache.batch_repeat_interleave(n)
        return logits.repeat_interleave(n, dim=0), cache, attention_mask.repeat_interleave(n, dim=0)

    def _forward(
        self, ids: Int[Tensor, "batch new"], attention_mask: Int[Tensor, "batch total"], cache: DynamicCache
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
            token_ids = invert_cdf(log_probs.double().exp(), uniforms)
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


def invert_cdf(probs: Float64[Tensor, "batch vocab"], uniforms: Float64[Tensor, "batch"]) -> Int[Tensor, "batch"]:
    """The first token at which the cumulative probability reaches each uniform number.

    With numbers in (0, 1], not [0, 1), it is never a token of probability 0, nor one past the end.
    """
    cdf = probs.cumsum(dim=-1)
    return torch.searchsorted(cdf, (uniforms * cdf[:, -1]).unsqueeze(1)).squeeze(1)


def _eos_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a response: the generation config's, which may list several, and the tokenizer's."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({token_id for token_id in [*ids, tokenizer.eos_token_id] if token_id is not None})
