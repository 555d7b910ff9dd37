"""The store: contents by their SHA-256, and the folders of versions that are made of them."""
