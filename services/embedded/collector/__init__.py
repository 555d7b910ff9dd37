"""A small OTLP trace receiver: what `shoal trace` shows when no tracing system is at hand."""
