"""Signs that a run is collapsing, said while there is time to stop it. Thresholds are rules of thumb, each with why."""

from typing import Any


def collapse_alarms(metrics: dict[str, Any]) -> list[str]:
    """What looks wrong in the metrics of a step that sampled rollouts; empty where nothing does."""
    alarms = []
    entropy = metrics["rollout_entropy"]
    if entropy < 0.01:
        alarms.append(f"entropy {entropy:.4f} nats a token: the policy hardly explores any more")
    if metrics["mean_length"] < 5:
        alarms.append(f"mean length {metrics['mean_length']:.1f} tokens: responses have become too short to reason")
    share = metrics.get("zero_std_groups", 0.0)  # of GRPO alone
    if share > 0.9:
        alarms.append(f"{share:.0%} of the groups have equal rewards: almost nothing is left to learn from")
    if metrics["truncation_rate"] > 0.5:
        alarms.append(f"{metrics['truncation_rate']:.0%} of the responses were cut off: they never reach an answer")
    return alarms
