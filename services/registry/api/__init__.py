"""The RegistryService over gRPC."""
