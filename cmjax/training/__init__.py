"""Training: losses, curricula of noise levels, data, and a small trainer."""
