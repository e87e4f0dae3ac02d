"""The environment of this process: cores, memory, precision, standard output, torchrun."""
