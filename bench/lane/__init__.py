"""What a load or an eviction costs the lane's proxy, with many models resident."""
