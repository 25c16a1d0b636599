"""Policy to text: the rollout engines behind one protocol."""
