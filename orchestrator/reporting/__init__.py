"""What comes out: the record in MLflow, the comparison, the report."""
