"""From a spec to a plan of content-addressed stages; free of torch, ray and mlflow."""
