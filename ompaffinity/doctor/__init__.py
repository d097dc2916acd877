"""Checks of this machine: what prevents or weakens binding, and how to fix it."""
