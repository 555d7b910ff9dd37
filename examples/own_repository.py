"""Serve a model repository of your own, here examples/own_repository with one small model.

    .venv/bin/shoal up --repository examples/own_repository
    .venv/bin/shoal infer reverse --input TEXT="few shoals"          # in another terminal

This program does the same by itself: it starts a stack in the background, on free ports, calls the
model, and stops the stack. Needs `make setup`.

    .venv/bin/python examples/own_repository.py
    slaohs wef
"""

from pathlib import Path

from services.embedded.background import BackgroundStack
from shoal.client import connect

REPOSITORY = Path(__file__).with_suffix("")


def main() -> None:
    with (
        BackgroundStack(f"--repository={REPOSITORY}", "--no-otlp") as stack,
        connect(router=stack.router_grpc) as shoal,
    ):
        answer = shoal.infer("reverse", {"TEXT": ["few shoals"]})
        print(answer["REVERSED"][0].decode())


if __name__ == "__main__":
    main()
