"""The services. What would only slow down their start is put off before anything else."""

from services.common import imports

imports.put_off_client()
imports.leave_out_rich()
