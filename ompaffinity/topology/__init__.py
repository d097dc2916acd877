"""READ: the hardware of a machine, and the part that this process may use."""
