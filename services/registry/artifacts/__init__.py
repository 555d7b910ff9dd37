"""Models on disk: found, scanned, and staged for Triton."""
