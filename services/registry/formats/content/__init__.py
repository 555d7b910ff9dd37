"""What several formats are made of: zip archives, pickles, headers of tensors, graphs."""
