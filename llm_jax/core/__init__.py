"""What every other room stands on: dimensions, parts and their registry, errors, files."""
