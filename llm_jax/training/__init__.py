"""The one loop, and what a user sees of it."""
