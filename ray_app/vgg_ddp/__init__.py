"""VGG11 with PyTorch DDP under Ray Train: the package that Ray ships to every worker."""
