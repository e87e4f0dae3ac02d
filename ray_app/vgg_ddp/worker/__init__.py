"""What every DDP rank runs. Start with train.py."""
