"""Curves and the report: lines and bands from metrics, panels that are left out, errors, the page."""

import numpy as np
import pytest

from cs336_alignment.run_folder import write_json, write_json_lines
from cs336_alignment.training.curves import (
    ACCURACY,
    NoMetricsError,
    Quantity,
    draw_curves,
    group_curves,
    line,
    read_curves,
)
from scripts import report

REWARD = Quantity("train", "reward", "mean reward")


def train(step, seconds, **metrics):
    return {"kind": "train", "step": step, **metrics, "timing": {"wall_seconds": seconds}}


def evaluation(step, seconds, accuracy, low, high):
    measured = {"n": 64, "accuracy": accuracy, "accuracy_interval": [low, high]}
    return {
        **train(step, seconds, **measured, format_rate=0.75, mean_length=30.0 + step),
        "kind": "eval",
    }


def write_run(folder, rows):
    write_json_lines(folder / "metrics.jsonl", rows)
    return folder


@pytest.fixture
def run(tmp_path):
    return write_run(
        tmp_path / "grpo",
        [
            evaluation(0, 6, 0.25, 0.2, 0.3),
            train(1, 30, reward=0.5, grad_norm=2.0, entropy=None),
            train(2, 60, reward=0.75, grad_norm=1.0, entropy=None),
            evaluation(2, 90, 0.5, 0.4, 0.6),
            train(3, 120, reward=0.25, grad_norm=1.0, entropy=0.5),
            evaluation(3, 150, 0.375, 0.3, 0.5),
        ],
    )


def test_a_run_by_hand(run):
    curves = read_curves(run)
    assert curves.label == "grpo"
    reward = line(curves, REWARD)
    assert reward is not None
    assert (reward.steps, reward.minutes, reward.values) == ([1, 2, 3], [0.5, 1.0, 2.0], [0.5, 0.75, 0.25])
    assert reward.low is reward.high is None
    accuracy = line(curves, ACCURACY)
    assert accuracy is not None
    assert (accuracy.steps, accuracy.minutes, accuracy.values) == ([0, 2, 3], [0.1, 1.5, 2.5], [25.0, 50.0, 37.5])
    assert accuracy.low == pytest.approx([20, 40, 30])
    assert accuracy.high == pytest.approx([30, 60, 50])


def test_steps_without_a_value_are_left_out(run):
    entropy = line(read_curves(run), Quantity("train", "entropy", ""))
    assert entropy is not None
    assert (entropy.steps, entropy.values) == ([3], [0.5])
    assert line(read_curves(run), Quantity("train", "clip_fraction", "")) is None


def test_a_group_by_hand(run, tmp_path):
    other = write_run(
        tmp_path / "other", [train(2, 120, reward=0.25), train(3, 180, reward=0.5), train(4, 1, reward=9)]
    )
    reward = line(group_curves("both", [read_curves(run), read_curves(other)]), REWARD)
    assert reward is not None
    assert (reward.steps, reward.minutes, reward.values) == ([2, 3], [1.5, 2.5], [0.5, 0.375])
    assert (reward.low, reward.high) == ([0.25, 0.25], [0.75, 0.5])


def test_a_row_cut_short_by_a_kill_is_dropped(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert len(read_curves(run).runs[0]) == 6


def test_panels_without_data_are_left_out(run):
    figure = draw_curves([read_curves(run, "ours")])
    labels = [axes.get_ylabel() for axes in figure.axes[::2]]
    assert [label.split()[0] for label in labels] == ["mean", "accuracy,", "entropy", "mean", "gradient"]
    assert [axes.get_xlabel() for axes in figure.axes[-2:]] == ["step of the algorithm", "wall-clock, minutes"]
    by_step, by_minutes = (np.asarray(axes.lines[0].get_xdata()).tolist() for axes in figure.axes[:2])
    assert (by_step, by_minutes) == ([1, 2, 3], [0.5, 1.0, 2.0])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours"]
    with pytest.raises(NoMetricsError, match="none of the runs has any of: clip_fraction"):
        draw_curves([read_curves(run)], [Quantity("train", "clip_fraction", "")])


def test_only_accuracy_has_a_band(run):
    figure = draw_curves([read_curves(run)], [ACCURACY, REWARD])
    assert [len(axes.collections) for axes in figure.axes] == [1, 1, 0, 0]


def test_a_folder_without_metrics(tmp_path):
    with pytest.raises(NoMetricsError, match=r"metrics\.jsonl is not there: name the folder of a training run"):
        read_curves(tmp_path)
    # A baseline's run folder has metrics of another kind.
    write_run(tmp_path, [{"chunk_start": 0, "examples": 2, "tokens": 9, "generation_seconds": 1.0}])
    with pytest.raises(NoMetricsError, match="holds no row of training or evaluation"):
        read_curves(tmp_path)


def test_report_of_one_run(run, capsys):
    write_json(
        run / "run.json",
        {
            "config": {
                "run": {"eval_data": "data/x/dev.jsonl", "prompt": "r1_zero", "max_tokens": 96, "eval_temperature": 1.0}
            },
            "protocol": {"engine": {"engine": "transformers 5", "dtype": "float32"}},
        },
    )
    report.main(report.Config(runs=(run,)))
    assert (run / "report.png").read_bytes().startswith(b"\x89PNG")
    [row] = [text for text in (run / "report.md").read_text().splitlines() if text.startswith("| grpo")]
    assert row == (
        "| grpo | 3 | 2.5 | x/dev, r1_zero, n = 64, T = 1, at most 96 tokens, transformers 5 float32 "
        "| 25.0 (20.0 to 30.0) | 37.5 (30.0 to 50.0) | 50.0 (40.0 to 60.0) at step 2 | 75.0% | 33.0 |"
    )


def test_report_of_runs_and_a_group(run, tmp_path):
    bare = write_run(tmp_path / "bare", [train(1, 6, reward=0.5)])
    config = report.Config(runs=(run,), labels=("ours",), group=(f"two={run},{bare}",), output=tmp_path / "out")
    curves, folders = report.read_all(config)
    assert [(each.label, len(each.runs)) for each in curves] == [("ours", 1), ("two", 2)]
    assert folders == [run, run, bare]
    report.main(config)
    page = (tmp_path / "out/report.md").read_text()
    assert "| bare | 1 | 0.1 | - | - | - | - | - | - |" in page
    assert "do not compare" not in page  # one protocol: the other run was never evaluated


def test_runs_evaluated_differently_are_marked(run, tmp_path):
    smaller = write_run(tmp_path / "smaller", [{**evaluation(0, 6, 0.5, 0.4, 0.6), "n": 8}])
    assert "do not compare their accuracies" in report.page([run, smaller])
    assert "do not compare their accuracies" not in report.page([run, run])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name a run folder"),
        ({"runs": ("a", "b"), "labels": ("x",)}, "1 --labels for 2 runs"),
        ({"group": ("a,b",)}, "write NAME=RUN,RUN"),
        ({"group": ("name=",)}, "write NAME=RUN,RUN"),
    ],
)
def test_options_that_cannot_be_used(options, message):
    with pytest.raises(ValueError, match=message):
        report.read_all(report.Config(**options))
