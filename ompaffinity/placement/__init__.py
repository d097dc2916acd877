"""DECIDE: pure functions from a Topology and a request to a Plan. No file, no clock, no environment."""
