"""PyTorch: its networks as ours, and ours as its."""
