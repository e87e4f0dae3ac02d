"""What runs in a job's containers: start Ray, train, agree on one exit code, copy the model out."""
