"""The equations, as pure functions from tensors to tensors. Imports torch and nothing else."""
