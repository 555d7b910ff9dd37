"""Whether anything grows in Shoal's services while they do all that they do."""
