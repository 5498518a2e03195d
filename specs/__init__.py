"""The experiment language: typed, strict, and free of torch, ray and mlflow."""
