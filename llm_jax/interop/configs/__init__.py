"""What config.json files have in common, in and out."""
