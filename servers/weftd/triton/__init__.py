"""NVIDIA's Triton on this machine: its repository, its process, and what keeps it alive."""
