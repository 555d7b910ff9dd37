"""Ray Serve with its gRPC proxy: `ray_server.py GRPC_PORT HTTP_PORT FOLDER`.

FOLDER is for its session and its logs.
"""

import signal
import sys

import ray
from ray import serve
from ray.serve.config import gRPCOptions
from ray_models import Models

SERVICER = "grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"
OBJECT_STORE = 100 << 20  # bytes


def main() -> None:
    grpc_port, http_port, folder = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(http_port)},
        grpc_options=gRPCOptions(port=int(grpc_port), grpc_servicer_functions=[SERVICER]),
        logging_config={"enable_access_log": False},
    )
    serve.run(Models.bind())
    signal.sigwait([signal.SIGTERM])
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
