"""Programs for people: the terminal chat."""
