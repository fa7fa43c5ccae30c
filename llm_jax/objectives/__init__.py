"""What a model is trained for: functions from a batch to sums."""
