"""Completions by the model in training, scored by rewards: rollouts are data."""
