"""Convert a folder of images to Parquet files (prepare.py)."""
