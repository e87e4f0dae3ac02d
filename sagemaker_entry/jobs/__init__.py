"""Submitted jobs: their log, followed even while AWS cannot be reached, their settings, and their endpoints."""
