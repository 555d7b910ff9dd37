"""The memory that a server on another host takes, as its own metrics endpoint reports it.

Triton reports the bytes used of each GPU (`nv_gpu_memory_used_bytes`, by UUID) and of the whole
host (`nv_cpu_memory_used_bytes`), by whatever program. Neither says which model has them.
"""

import urllib.request
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from services.controller.core.memory import Memory
from services.controller.measurement.footprints import RAM

GPU_USED: Final = "nv_gpu_memory_used_bytes"
CPU_USED: Final = "nv_cpu_memory_used_bytes"
READ_SECONDS: Final = 2.0


def read(url: str) -> Memory:
    """Return what is used there, in bytes by resource. Blocks.

    Raises OSError, ValueError.
    """
    # The settings let only http and https through.
    with urllib.request.urlopen(url, timeout=READ_SECONDS) as answer:  # noqa: S310
        return used(answer.read().decode())


def used(page: str) -> Memory:
    """Return the bytes by resource that a page of Triton's metrics reports.

    GPUs are numbered in the order of their UUIDs. Raises ValueError.
    """
    found: dict[str, int] = {}
    gpus: dict[str, int] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == GPU_USED:
                gpus[sample.labels.get("gpu_uuid", "")] = int(sample.value)
            elif sample.name == CPU_USED:
                found[RAM] = int(sample.value)
    return found | {f"gpu:{number}": gpus[uuid] for number, uuid in enumerate(sorted(gpus))}
