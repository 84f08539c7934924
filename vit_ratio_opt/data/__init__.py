"""Images: sources, splits, preprocessing, batches."""
