"""The page that an evaluation leaves for people: `report.md` and a histogram of response lengths."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cs336_alignment.evaluation import EvaluationProtocol, GradedExample
from cs336_alignment.run_folder import write_atomically

SAMPLES_PER_CATEGORY = 10
HISTOGRAM = "lengths.png"

_CATEGORY_TITLES = {
    "type2": "Formatted but wrong (type2)",
    "type3": "Unformatted (type3)",
    "type1": "Correct (type1)",
}


def write_report(
    run_folder: Path, protocol: EvaluationProtocol, examples: Sequence[GradedExample], summary: dict[str, Any]
) -> Path:
    """Write `lengths.png` and `report.md`, and return the path of the latter."""
    write_atomically(run_folder / HISTOGRAM, _length_histogram(examples))
    sections = [
        f"# {protocol.split} with {protocol.model}",
        summary_table(summary),
        f"![Lengths of correct and incorrect responses]({HISTOGRAM})",
        "## Protocol\n\n" + _protocol_list(protocol),
        _disagreements(examples),
        "In the samples below, the prompt ends and the response begins at ⟶.",
        *(_samples(title, [e for e in examples if e.category == kind]) for kind, title in _CATEGORY_TITLES.items()),
    ]
    report = run_folder / "report.md"
    write_atomically(report, "\n\n".join(sections) + "\n")
    return report


def summary_table(summary: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    low, high = summary["accuracy_interval"]
    counts = summary["categories"]
    rows = [
        ("problems", f"{summary['n']:,}"),
        ("accuracy (course-compatible)", f"{summary['accuracy']:.2%}, 95% interval {low:.2%} to {high:.2%}"),
        ("accuracy (semantic)", f"{summary['accuracy_semantic']:.2%}; {summary['verdicts_differ']} verdicts differ"),
        ("undecided by the semantic grader", f"{summary['undecided']}"),
        ("format rate", f"{summary['format_rate']:.2%}"),
        ("type1: correct", f"{counts['type1']:,}"),
        ("type2: formatted but wrong", f"{counts['type2']:,}"),
        ("type3: unformatted", f"{counts['type3']:,}"),
        ("truncated", f"{summary['truncation_rate']:.2%}"),
        ("mean length, tokens", f"{summary['mean_length']:.1f}"),
        ("mean length of correct responses", _tokens(summary["mean_length_correct"])),
        ("mean length of incorrect responses", _tokens(summary["mean_length_incorrect"])),
        ("examples a second", f"{summary['examples_per_second']:.2f}"),
        ("tokens a second", f"{summary['tokens_per_second']:.0f}"),
    ]
    return "| figure | value |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _tokens(mean_length: float | None) -> str:
    return "none" if mean_length is None else f"{mean_length:.1f}"


def _protocol_list(protocol: EvaluationProtocol) -> str:
    sampling = protocol.sampling
    return "\n".join(
        [
            f"- model: {protocol.model}",
            f"- data: {protocol.split}, {protocol.n_problems:,} problems, sha256 {protocol.split_sha256}",
            f"- prompt: {protocol.prompt}, sha256 {protocol.prompt_sha256}",
            f"- sampling: temperature {sampling.temperature}, top-p {sampling.top_p}, at most {sampling.max_tokens} "
            f"and at least {sampling.min_tokens} tokens, stop {', '.join(map(repr, sampling.stop)) or 'at EOS alone'}, "
            f"seed {sampling.seed}",
            "- engine: " + ", ".join(f"{key} {value}" for key, value in protocol.engine.items()),
        ]
    )


def _disagreements(examples: Sequence[GradedExample]) -> str:
    differing = [example for example in examples if example.reward != example.semantic_reward]
    lines = [f"## Where the two verdicts differ ({len(differing)})"]
    if differing:
        lines.append("\n| problem | answer | gold | course-compatible | semantic |\n|---|---|---|---|---|")
    for example in differing[:SAMPLES_PER_CATEGORY]:
        answer = (example.parsed_answer or "").replace("|", "\\|").replace("\n", " ")[:200]
        lines.append(f"| {example.index} | {answer} | {example.gold} | {example.reward} | {example.semantic_reward} |")
    return "\n".join(lines)


def _samples(title: str, examples: Sequence[GradedExample]) -> str:
    lines = [f"## {title}: {min(len(examples), SAMPLES_PER_CATEGORY)} of {len(examples)}"]
    for example in examples[:SAMPLES_PER_CATEGORY]:
        lines.append(f"\n### Problem {example.index}, gold {example.gold}, parsed {example.parsed_answer!r}\n")
        lines.append(_fenced(example.prompt + "⟶" + example.response))
    return "\n".join(lines)


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def _length_histogram(examples: Sequence[GradedExample]) -> bytes:
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    groups = {
        "correct": [example.length for example in examples if example.reward],
        "incorrect": [example.length for example in examples if not example.reward],
    }
    labels = [f"{name} ({len(lengths)})" for name, lengths in groups.items()]
    axes.hist(list(groups.values()), bins=40, stacked=True, label=labels, color=["#2a7f62", "#c8553d"])
    axes.set(xlabel="response length (tokens)", ylabel="responses")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    return image.getvalue()
