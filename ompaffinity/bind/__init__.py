"""BIND: masks, memory policies and environments of processes, each undone exactly."""
