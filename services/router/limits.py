"""How the settings spell limits of tenants."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.router.core.priority import Priority
from services.router.core.tenants import ANYBODY, TenantLimit


class TenantSettings(BaseModel):
    """As `TenantLimit`; what one tenant leaves out is as for all."""

    model_config = ConfigDict(extra="forbid")

    rate: float | None = Field(default=None, gt=0)
    burst: float | None = Field(default=None, ge=1)
    in_flight: int | None = Field(default=None, ge=1)
    cold: int | None = Field(default=None, ge=1)
    priority: Literal["high", "normal", "low"] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.burst is not None and self.rate is None:
            raise ValueError("a burst needs a rate beside it")
        return self

    def over(self, limit: TenantLimit) -> TenantLimit:
        """With `limit` for what is left out."""
        return TenantLimit(
            rate=limit.rate if self.rate is None else self.rate,
            burst=limit.burst if self.rate is None else self.burst,
            in_flight=limit.in_flight if self.in_flight is None else self.in_flight,
            cold=limit.cold if self.cold is None else self.cold,
            priority=limit.priority if self.priority is None else Priority[self.priority.upper()],
        )


def tenant_limits(settings: Mapping[str, TenantSettings]) -> dict[str, TenantLimit]:
    anybody = settings.get(ANYBODY, TenantSettings()).over(TenantLimit())
    return {name: tenant.over(anybody) for name, tenant in settings.items()}
