"""The Registry: what exists."""
