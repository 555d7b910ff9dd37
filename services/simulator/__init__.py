"""The residency engine over recorded requests, in virtual time."""
