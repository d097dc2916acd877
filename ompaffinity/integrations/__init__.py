"""Code for other projects: engines, Ray, vLLM."""
