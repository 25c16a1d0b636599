"""Train the embedded policy from scratch: a small Qwen2 with its own tokenizer, written to data/policy.

    python scripts/train_embedded_policy.py [--output DIR] [--lessons.steps N ...]

It is a language model of worked solutions, left unfinished on purpose. It reads the arithmetic training split and more
problems from the same templates, none of them in dev or test, and it reads them as the web would have them: some
solutions carry the tags that the r1_zero prompt asks for, others end in "The answer is 12.". In a first stage every
solution is written out; in a second, most writers say that they do the sum in their heads. So the policy knows the
answer format and the arithmetic, and uses neither reliably: that is left to SFT, expert iteration and GRPO. About ten
minutes on one idle core. Everything is seeded.
"""

import hashlib
import math
import os
import random
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
import tyro
from tokenizers import AddedToken
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from cs336_alignment.prompts import fill, load_template
from cs336_alignment.tasks.arithmetic import SPLIT_SIZES, Example, generate, splits
from cs336_alignment.tasks.gsm8k import parse_answer

DATA = Path(__file__).resolve().parents[1] / "data"
R1_ZERO = load_template("r1_zero")
END, PAD = "<|endoftext|>", "<|pad|>"
END_ID, PAD_ID = 0, 1  # a tokenizer numbers its special tokens first
IGNORED = -100
DRILL_PROBLEMS = 4  # whose sums make a drill about as long as a problem and its solution

# How the writers of the corpus end a solution, and how often. The first is the form that the r1_zero grader accepts.
ENDINGS = (
    (" {rationale} </think> <answer> {gold} </answer>", 50),
    (" {rationale} The answer is {gold}.", 16),
    (" {rationale} </think> The answer is {gold}.", 12),
    (" {rationale}\n#### {gold}", 10),
    (" {rationale} <answer> {gold} </answer>", 6),
    (" {rationale} </think><answer> {gold} </answer>", 6),
)
HASTY = "I do this in my head."
BOXED_ENDING = "\n{rationale} The answer is \\boxed{{{gold}}}."


@dataclass(frozen=True)
class Stage:
    """One leg of the training, with a learning rate schedule of its own."""

    steps: int
    """Optimiser steps, each on new problems."""
    learning_rate: float
    """Peak of the schedule: linear warm-up over a tenth of the steps, then a cosine down to zero."""
    hasty_share: float
    """Share of solutions without steps: a writer does the sum in the head and states the result."""


@dataclass(frozen=True)
class Config:
    """Options of the command; the defaults make the committed policy."""

    output: Path = DATA / "policy"
    """Folder for the model and the tokenizer."""
    lessons: Stage = Stage(steps=2600, learning_rate=3e-3, hasty_share=0.0)
    """First stage: every solution is written out."""
    haste: Stage = Stage(steps=300, learning_rate=5e-4, hasty_share=0.55)
    """Second stage: most writers are hasty. The knob for how unfinished the policy is."""
    batch_size: int = 16
    """Documents a step."""
    drill_share: float = 0.15
    """Share of documents that are drills: sums without a story, to make the arithmetic sure."""
    boxed_share: float = 0.04
    r"""Share of problems in the question_only form: the bare question, and an answer in \boxed{}."""
    hidden_size: int = 128
    """Width of the model; heads of 32."""
    layers: int = 4
    """Depth of the model."""
    vocab_size: int = 1024
    """Tokens, all told."""
    seed: int = 5
    """Seed of the problems, the documents and the initial weights."""
    threads: int = 1
    """Torch threads; another number changes the order of float additions and so the weights."""


def corpus(config: Config) -> list[Example]:
    """The training split and as many new problems as the steps need, with no question of any split among them."""
    committed = splits()
    questions = [example.question for examples in committed.values() for example in examples]
    needed = (config.lessons.steps + config.haste.steps) * config.batch_size
    return committed["train"] + generate(needed - len(committed["train"]), config.seed, exclude=questions)


def documents(examples: list[Example], stage: Stage, config: Config, rng: random.Random) -> list[list[str]]:
    """One document for each problem; in the place of some stands a drill."""
    return [
        drill(examples, rng) if rng.random() < config.drill_share else document(example, stage, config, rng)
        for example in examples
    ]


def document(example: Example, stage: Stage, config: Config, rng: random.Random) -> list[str]:
    """One problem as prompt and response, in the manner of one of the corpus's writers."""
    gold, rationale = parse_answer(example.answer)
    if rng.random() < stage.hasty_share:
        rationale = HASTY
    if rng.random() < config.boxed_share:
        return [example.question, BOXED_ENDING.format(rationale=rationale, gold=gold) + END]
    ending = rng.choices([text for text, _ in ENDINGS], [weight for _, weight in ENDINGS])[0]
    return [fill(R1_ZERO, question=example.question), ending.format(rationale=rationale, gold=gold) + END]


def drill(examples: list[Example], rng: random.Random) -> list[str]:
    """The sums of a few solutions as prompt, response, prompt, response and so on."""
    solutions = "\n".join(parse_answer(example.answer)[1] for example in rng.sample(examples, DRILL_PROBLEMS))
    sums = re.findall(r"(\d+ [-+*/] \d+ =)( \d+)", solutions)
    return [piece for question, result in sums for piece in (question, f"{result}\n")]


def build_tokenizer(examples: list[Example], vocab_size: int) -> Qwen2Tokenizer:
    """Byte-level BPE with single digits; the fixed parts of the r1_zero prompt and the tags are ordinary tokens.

    It is trained as a Qwen2Tokenizer because that is what AutoTokenizer makes of any tokenizer.json beside a Qwen2
    model: a pre-tokenizer of another kind would be replaced on loading, without a word.
    """
    head, tail = R1_ZERO.split("{question}")
    ordinary = [head, tail, "<think>", "</think>", "<answer>", "</answer>"]
    texts = [f"{example.question} {parse_answer(example.answer)[1]}" for example in examples]
    texts += [ending.format(rationale="", gold="") for ending in (*dict(ENDINGS), BOXED_ENDING)] * 100
    untrained = Qwen2Tokenizer(eos_token=END, pad_token=PAD)
    tokenizer = untrained.train_new_from_iterator(texts, vocab_size - len(ordinary), show_progress=False)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ordinary])
    return tokenizer


def build_model(config: Config) -> Qwen2ForCausalLM:
    heads = config.hidden_size // 32
    model_config = Qwen2Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.hidden_size * 3,
        num_hidden_layers=config.layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )
    torch.manual_seed(config.seed)
    return Qwen2ForCausalLM(model_config)


def batches(
    documents: list[list[str]], tokenizer: Qwen2Tokenizer, config: Config, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, labels), `batch_size` documents at a time; only the responses are labels.

    The documents of a batch have prompts of similar length, which saves padding. Sorted by their whole length, hasty
    solutions would come in batches of their own, and the last few of these would sway how hasty the policy is.
    """
    documents = sorted(documents, key=lambda pieces: len(pieces[0]))
    starts = list(range(0, len(documents), config.batch_size))
    rng.shuffle(starts)
    for start in starts:
        rows = [encode(pieces, tokenizer) for pieces in documents[start : start + config.batch_size]]
        yield (
            pad_sequence([ids for ids, _ in rows], batch_first=True),
            pad_sequence([labels for _, labels in rows], batch_first=True, padding_value=IGNORED),
        )


def encode(pieces: list[str], tokenizer: Qwen2Tokenizer) -> tuple[Tensor, Tensor]:
    """(ids, labels) of one document, whose pieces are prompts and responses by turns."""
    encoded = tokenizer(pieces)["input_ids"]
    learned = [piece if turn % 2 else [IGNORED] * len(piece) for turn, piece in enumerate(encoded)]
    return torch.tensor(list(chain.from_iterable(encoded))), torch.tensor(list(chain.from_iterable(learned)))


def learning_rate(step: int, stage: Stage) -> float:
    warmup = max(1, stage.steps // 10)
    if step < warmup:
        return stage.learning_rate * step / warmup
    return stage.learning_rate * (0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (stage.steps - warmup)))


def train(model: Qwen2ForCausalLM, batches: Iterator[tuple[Tensor, Tensor]], stage: Stage) -> None:
    """Next-token prediction on the responses; the questions are noise that a model of this size need not learn."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    started = time.monotonic()
    for step, (ids, labels) in enumerate(batches, start=1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, stage)
        # Padding stands on the right, where a causal model's real tokens never look: no attention mask is needed.
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        kept = targets != IGNORED
        loss = F.cross_entropy(model.lm_head(hidden[kept]), targets[kept])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}  loss {loss.item():.4f}  {time.monotonic() - started:.0f} s", flush=True)


def save(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, output: Path) -> None:
    """Write beside the target first and move file by file: a broken run leaves no half-written file."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as folder:
        model.generation_config = GenerationConfig(eos_token_id=END_ID, pad_token_id=PAD_ID)
        model.to(torch.bfloat16).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).iterdir()):
            os.replace(path, output / path.name)
            print(hashlib.sha256((output / path.name).read_bytes()).hexdigest(), path.name)


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    examples = corpus(config)
    tokenizer = build_tokenizer(examples[: SPLIT_SIZES["train"]], config.vocab_size)
    model = build_model(config)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, {len(examples):,} documents")
    rng = random.Random(config.seed)
    cut = config.lessons.steps * config.batch_size
    for stage, part in ((config.lessons, examples[:cut]), (config.haste, examples[cut:])):
        train(model, batches(documents(part, stage, config, rng), tokenizer, config, rng), stage)
    save(model, tokenizer, config.output)


if __name__ == "__main__":
    main(tyro.cli(Config))
