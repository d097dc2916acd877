"""The OpenMP variables and runtimes; no other room has either."""
