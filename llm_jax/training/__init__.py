"""The loop, and all it needs: state, optimisers, evaluation, run directory, checkpoints."""
