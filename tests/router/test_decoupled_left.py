"""A decoupled version that is deleted while a Router still has its replies: the Triton is real."""

import secrets
from pathlib import Path

import grpc
import pytest

from services.controller.core.entities import Server
from services.router.core.routing.routes import Target
from shoal.names import model_name
from tests.support import controller as controller_harness
from tests.support.controller import entry
from tests.support.router import router
from tests.support.streams import ECHO, MANY, Talk, ask, numbers, write_models
from tests.support.triton_direct import triton_direct
from tests.support.triton_models import config
from tests.support.waiting import until

REPLIES, PAUSE = 8, 0.2  # seconds


@pytest.mark.triton
async def test_others_know_of_it_until_it_is_unloaded(tmp_path: Path) -> None:
    """Or they would open streams in turns to plain models, which crash a Triton beside it."""
    many = config(MANY)
    many.model_transaction_policy.decoupled = True
    entries = [
        entry(ECHO, 1, decoupled=False),
        entry(MANY, 1, config=many.SerializeToString(), decoupled=True),
    ]
    models = write_models(tmp_path / "models")
    with triton_direct(tmp_path, models, id=f"t0-{secrets.token_hex(4)}") as server:
        keys = {server.spec.id: server.spec.admin_secret}
        fleet = [Server(server.spec.id, server.address)]
        async with (
            controller_harness.controller(fleet, entries, keys) as controller,
            router(controller.address, grpc_port=7) as busy,
            router(controller.address, grpc_port=8) as other,
            grpc.aio.insecure_channel(busy.address) as channel,
        ):
            talk = Talk(channel)
            await talk.say(ask(MANY, REPLIES, PAUSE))
            assert numbers(await talk.hear()) == (0.0,)

            gone = controller.loop.catalogue.replace((), [model_name(MANY)], all_=False)
            controller.loop.catalogue_changed(gone)
            await until(lambda: other.watch.table.entry(Target(MANY, 1)) is None)
            assert not other.watch.table.none_decoupled
            values = [numbers(reply) for reply in await talk.rest()]
            assert values == [(float(number),) for number in range(1, REPLIES)]
            await until(lambda: other.watch.table.none_decoupled)
