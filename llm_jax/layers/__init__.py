"""The parts of a transformer: embedding, positions, masks, kernels, attention, norms, feed-forward, block."""
