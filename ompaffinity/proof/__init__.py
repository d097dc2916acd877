"""PROVE: what the kernel reports of running workers, and how it compares with the plan."""
