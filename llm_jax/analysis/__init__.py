"""What runs cost and what they showed: the benchmark."""
