"""What a fine-tune takes: forecast, GPUs, and the simulation of paged optimizer state."""
