"""The helpers that vLLM knows, under its names."""
