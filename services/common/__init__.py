"""Process plumbing that the services share.

Importing it keeps gRPC's core to its errors: it writes the rest on stderr, past any logging, and
reads its level when `grpc` is first imported.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
