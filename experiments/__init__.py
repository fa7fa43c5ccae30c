"""One file per question; the name of the file is the name of the experiment."""
