"""Layer 4: connections that are tunnelled untouched to one backend of a pool."""
