"""The helpers of vLLM, under the names that vLLM uses."""
