"""TELL: what the OpenMP runtime of each rank hears."""
