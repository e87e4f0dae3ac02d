"""SageMaker: submit.py and deploy.py run on your machine; launch.py runs in every container of a job."""
