"""What submit.py and deploy.py use on your machine: settings, SageMaker's SDK, waiting for a job."""
