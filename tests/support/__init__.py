"""Shared by several tests: commands, simulated containers, namespace hosts, fake AWS services."""
