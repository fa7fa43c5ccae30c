"""Published tokenizers, in and out."""
