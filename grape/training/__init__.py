"""Training: one loop, where batches come from, how weights are updated, how a killed run goes on."""
