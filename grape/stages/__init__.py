"""The stages of dvc.yaml, a module each. Each is thin: read artifacts, build the parts, call them, write artifacts and metrics."""
