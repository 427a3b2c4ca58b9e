"""Reaching backends: their addresses, dialling them, which one to try next."""
