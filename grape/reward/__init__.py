"""Rewards: text in, `Scores` out. Never sees the policy's logits, a loss or an optimiser."""
