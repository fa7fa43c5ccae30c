"""Optimisers, schedules, precision, and which parameters are trained."""
