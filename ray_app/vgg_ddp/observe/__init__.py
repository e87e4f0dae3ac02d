"""Monitoring: the terminal, Prometheus, profiles, TensorBoard, MLflow."""
