"""Speed of training, start-up, reading images and checkpoints, compared with other programs."""
