"""The residency engine under a trace of requests, in virtual time, against other policies."""
