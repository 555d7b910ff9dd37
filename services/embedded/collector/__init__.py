"""A small OTLP trace receiver, for `shoal trace` when there is no tracing system."""
