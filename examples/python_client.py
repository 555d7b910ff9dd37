"""Call models from Python, with arrays in and arrays out.

    make up                                              # in another terminal
    .venv/bin/python examples/python_client.py

Prints what a model takes, the answers of a numeric and of a text model, and how a request for a
model that does not exist is refused:

    multiplier takes INPUT FP32 [-1, -1]
    [[10. 20. 30.]] by version 2
    2 words in "few shoals"
    MODEL_NOT_FOUND: Request for unknown model: ...
"""

import argparse

import numpy as np

from shoal.client import NotFound, connect


def main(router: str) -> None:
    with connect(router=router, timeout=60) as shoal:
        for tensor in shoal.metadata("multiplier").inputs:
            print(f"multiplier takes {tensor.name} {tensor.datatype} {list(tensor.shape)}")

        array = np.array([[1, 2, 3]], dtype=np.float32)
        numbers = shoal.infer("multiplier", {"INPUT": array}, version=2)
        print(numbers["OUTPUT"], "by version", numbers.version)

        text = "few shoals"
        counts = shoal.infer("text_stats", {"TEXT": [text]})["COUNTS"]
        print(f'{counts[0, 1]} words in "{text}"')

        try:
            shoal.infer("no_such_model", {"INPUT": [1.0]})
        except NotFound as error:
            print(f"{error.reason}: {error.message}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Call models from Python.")
    parser.add_argument("--router", default="localhost:8001", metavar="HOST:PORT")
    main(parser.parse_args().router)
