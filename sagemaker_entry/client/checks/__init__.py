"""Checks of a job's settings that need more than their types: access, machines, environment variables."""
