"""Model weights: model.safetensors, --init-from, MLflow."""
