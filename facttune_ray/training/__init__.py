"""Grouped DPO: losses, batches, reference, the Ray Train loop, export."""
