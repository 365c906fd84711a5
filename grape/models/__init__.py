"""Models: loading and saving, text to token rows, and forward passes. No losses, no optimisers."""
