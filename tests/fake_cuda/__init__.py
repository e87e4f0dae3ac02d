"""A CUDA without a GPU: torch's real GPU path runs on it, its work is counted, and the CPU computes its results."""
