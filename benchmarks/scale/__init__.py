"""More workers, slower networks, and a prediction for many GPUs."""
