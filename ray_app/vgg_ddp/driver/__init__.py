"""What the process that you start runs: check the input, start the workers, report the outcome."""
