"""What every other room stands on: the alphabet of dimensions, parts, tables of names, files."""
