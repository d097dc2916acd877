"""Memory policies of threads, and what the kernel made of them."""
