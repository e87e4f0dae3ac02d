"""Every use of a private API of Ray, torch, pyarrow, and tensorboardX, each with the public behavior as fallback."""
