"""What a finished run says of itself, beyond its loss."""
