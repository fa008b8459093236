"""Models for runtimes without PyTorch."""
