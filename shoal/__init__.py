"""Shoal's client side: generated stubs, resource names, and a typed client.

Importing this package needs only grpcio and protobuf.
"""
