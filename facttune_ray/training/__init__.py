"""DPO on response groups: losses, batches, reference, the Ray Train worker, export."""
