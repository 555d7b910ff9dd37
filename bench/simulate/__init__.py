"""The residency engine under a trace of requests, in virtual time, against other policies.

Scripts over traces also find here the modules of the simulator that comes with Shoal.
"""

import sys

from services.simulator import files, world

for _module in (files, world):
    sys.modules[f"{__name__}.{_module.__name__.rpartition('.')[2]}"] = _module
