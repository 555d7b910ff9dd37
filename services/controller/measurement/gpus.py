"""The memory that each process of this host takes on its GPUs, as NVML reports it.

The package `nvidia-ml-py` is optional: without it, or without a driver, there are no GPUs. NVML
identifies processes by their pids on the host, so a Controller in a container must share the host's
process namespace (`--pid=host`).
"""

import importlib
from collections.abc import Mapping
from typing import Any, Final, Self

import structlog

from services.controller.core.memory import Memory

BINDINGS: Final = "pynvml"

_log = structlog.get_logger(__name__)


class Gpus:
    """The GPUs of this host.

    `nvml`: the module pynvml; None for a host without GPUs.
    """

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml

    @classmethod
    def of_this_host(cls) -> Self:
        """Return the GPUs that NVML finds; none without the package or a driver."""
        try:
            nvml = importlib.import_module(BINDINGS)
        except ImportError:
            return cls()
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:  # no driver here
            _log.debug("no GPUs", cause=str(error))
            return cls()
        return cls(nvml)

    def used(self) -> Mapping[int, Memory]:
        """Return the bytes by pid and resource ("gpu:0", in NVML's numbering). May block."""
        if self._nvml is None:
            return {}
        found: dict[int, dict[str, int]] = {}
        try:
            for number in range(self._nvml.nvmlDeviceGetCount()):
                device = self._nvml.nvmlDeviceGetHandleByIndex(number)
                for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(device):
                    # None where the driver does not say: in a virtual machine, or under MIG.
                    if process.usedGpuMemory is not None:
                        taken = found.setdefault(process.pid, {})
                        resource = f"gpu:{number}"
                        taken[resource] = taken.get(resource, 0) + process.usedGpuMemory
        except self._nvml.NVMLError as error:
            _log.warning("the memory of the GPUs cannot be read", cause=str(error))
        return found
