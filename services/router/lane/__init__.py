"""The express lane: Envoy in front of the Router, told what to send straight to a server."""
