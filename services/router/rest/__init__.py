"""The Router's HTTP port: Triton's HTTP protocol, and plain routes for everybody else."""
