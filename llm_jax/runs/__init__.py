"""A run's folder: what made it, its checkpoints, its metrics, and the lock by which one process writes there."""
