"""PROVE: what the kernel says of running workers, and how it compares with the plan."""
