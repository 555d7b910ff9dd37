"""What the Registry decides, as pure functions over immutable values."""
