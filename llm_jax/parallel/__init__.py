"""Layouts: which device holds what."""
