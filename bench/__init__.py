"""What Shoal costs: measured, not estimated. `python -m bench --help`."""
