"""Classify images for HTTP clients: the contract of the endpoints, and Ray Serve."""
