"""The channels to the Tritons."""

import grpc

from services.router.process.tuning import CHANNEL_OPTIONS


class ServerChannels:
    """One channel to each Triton, opened when it is first used and kept until the end.

    Whatever is sent on one channel shares a connection: decoupled streams have channels of their
    own, so that what they give back does not hold up requests alone."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}

    def to(self, address: str) -> grpc.aio.Channel:
        """Return the channel to the server at `address`, as host:port."""
        channel = self._channels.get(address)
        if channel is None:
            channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
            self._channels[address] = channel
        return channel

    async def close(self) -> None:
        """Close all channels, along with what is still under way."""
        for channel in self._channels.values():
            await channel.close(None)
