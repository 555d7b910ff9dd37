"""The catalogue in a database, its changes, and who follows them."""
