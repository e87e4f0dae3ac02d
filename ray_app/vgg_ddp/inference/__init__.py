"""Classify many images with Ray Data (predict.py --images)."""
