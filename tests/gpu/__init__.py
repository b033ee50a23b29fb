"""What needs a CUDA GPU: ``make gpu-check``."""
