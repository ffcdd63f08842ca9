"""Training images: reading, augmentation and batches."""
