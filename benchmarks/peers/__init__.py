"""This program compared with other ways to train the same model on the same images."""
