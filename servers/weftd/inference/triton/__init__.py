"""The models as NVIDIA Triton serves them."""
