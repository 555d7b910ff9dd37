"""Where models come from: an origin for each scheme."""
