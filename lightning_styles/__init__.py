"""Image stylization methods as one PyTorch Lightning experiment framework."""

__version__ = "0.1.0"
