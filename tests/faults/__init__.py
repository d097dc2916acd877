"""Fault injection: hostile input, refused system calls, missing parts of a system, signals. See ``__main__.py``."""
