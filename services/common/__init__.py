"""Process plumbing that the services share.

Importing it limits gRPC's core to logging errors. The core writes to stderr, bypassing Python's
logging, and reads its level when `grpc` is first imported.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
