"""Few-shot image classification."""
