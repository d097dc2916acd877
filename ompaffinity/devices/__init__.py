"""READ: which GPUs this process sees, and which NUMA node each one is next to."""
