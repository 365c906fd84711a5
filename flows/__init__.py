"""The pipeline under Prefect: the only part of the project that imports it."""
