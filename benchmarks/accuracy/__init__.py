"""Accuracy, and the epochs and seconds needed to reach it."""
