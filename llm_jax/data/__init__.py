"""From raw text to batches of token ids: sources, splits, packing, mixtures, the corpus cache, the resumable loader."""
