"""READ: the GPUs that are visible to this process, and the NUMA nodes next to each."""
