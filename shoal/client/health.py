"""grpc.health.v1 without its package, which the client does not depend on."""

from typing import Final

CHECK: Final = "/grpc.health.v1.Health/Check"
SERVING: Final = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse{status: SERVING}
