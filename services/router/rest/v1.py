"""The routes under /v1, for users of small model servers.

They take names, lists and numbers, without tensors to describe."""

import asyncio
from collections.abc import Sequence
from typing import Final

from services.router.rest import predictions, tensors
from services.router.rest.incoming import HttpRequest
from services.router.rest.messages import document
from services.router.rest.reply import HttpReply, json_reply
from services.router.rest.service import Service

AT_ONCE: Final = 8  # requests at a time to a model without batching, for one call


async def predict(incoming: HttpRequest, service: Service) -> HttpReply:
    """Answer `inputs` by name, or a list of `instances`, in the same form."""
    model, version = _name_and_version(incoming)
    service.require_known(model, version)
    await incoming.decompress(service.max_body)
    config = (await service.call("ModelConfig", incoming, name=model, version=version)).config
    body = incoming.body
    asked = await service.read(len(body), predictions.read, body, model, version, config)
    answers = await _answers(asked.messages, incoming, service)
    size = sum(answer.size for answer in answers)
    return HttpReply(
        200, await service.converter.run(size, predictions.written, answers, asked.form)
    )


async def _answers(
    messages: Sequence[bytes], incoming: HttpRequest, service: Service
) -> list[tensors.Decoded]:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(message: bytes) -> tensors.Decoded:
        async with places:
            answer = await service.inference.answer(service.request(message, incoming))
            return tensors.decoded(answer.message)

    tasks = [asyncio.ensure_future(one(message)) for message in messages]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def metadata(incoming: HttpRequest, service: Service) -> HttpReply:
    model, version = _name_and_version(incoming)
    service.require_known(model, version)
    route = service.watch.table.routes[model]
    named = {"name": model, "version": version}
    described = document(await service.call("ModelMetadata", incoming, **named))
    config = (await service.call("ModelConfig", incoming, **named)).config
    return json_reply(
        {
            **described,
            "default_version": str(route.default_version or ""),
            "aliases": {name: str(number) for name, number in sorted(route.aliases.items())},
            "max_batch_size": config.max_batch_size,
            "decoupled": config.model_transaction_policy.decoupled,
        }
    )


async def ready(incoming: HttpRequest, service: Service) -> HttpReply:
    model, version = _name_and_version(incoming)
    service.require_known(model, version)
    reply = await service.call("ModelReady", incoming, name=model, version=version)
    return json_reply({"name": model, "ready": reply.ready}, 200 if reply.ready else 503)


async def status(incoming: HttpRequest, service: Service) -> HttpReply:
    routes = service.watch.table.routes
    return json_reply(
        {
            "models": [
                {
                    "name": name,
                    "default_version": str(route.default_version or ""),
                    "aliases": {alias: str(of) for alias, of in sorted(route.aliases.items())},
                    "versions": [
                        {
                            "version": str(number),
                            "servable": entry.servable,
                            "resident": bool(entry.servers),
                            "servers": list(entry.servers),
                            "reason": "" if entry.servers else entry.reason,
                        }
                        for number, entry in sorted(route.versions.items())
                    ],
                }
                for name, route in sorted(routes.items())
            ]
        }
    )


async def health(incoming: HttpRequest, service: Service) -> HttpReply:
    """Return 503 until there is a first placement table."""
    there = service.watch.synchronized.is_set()
    return json_reply(
        {
            "status": "ok" if there else "starting",
            "controller_connected": service.watch.connected,
            "models": len(service.watch.table.routes),
        },
        200 if there else 503,
    )


def _name_and_version(incoming: HttpRequest) -> tuple[str, str]:
    model, _, version = incoming.path["id"].partition(":")
    return model, version
