"""Losses, noise-level schedules and a small trainer."""
