"""Sweeps: runs with different settings under Ray Tune, compared by their validation accuracy."""
