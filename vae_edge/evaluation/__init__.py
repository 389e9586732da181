"""What the figures of a trained model are, and what they mean: measured on arrays of predictions, without PyTorch."""
