"""Shoal for its callers: generated stubs, resource names, a typed client and the command line.

Importing this package needs only grpcio and protobuf.
"""
