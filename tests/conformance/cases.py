"""What is asked, of a Triton alone and of Shoal."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from tritonclient.grpc import service_pb2

from tests.conformance.calls import STREAM, Metadata

Make = Callable[[str], list[Any]]


@dataclass(frozen=True)
class Case:
    """`kind`: of the model that it asks, empty where it asks none that could be loaded. `make`: the
    requests for a copy of that kind, messages or bytes. `differs`: which of the listed differences
    it shows. `others`: names of more models that it asks."""

    name: str
    method: str
    kind: str
    make: Make
    differs: str = ""
    metadata: Metadata = ()
    others: tuple[str, ...] = ()

    def requests(self, model: str) -> list[bytes]:
        return [
            made if isinstance(made, bytes) else made.SerializeToString()
            for made in self.make(model)
        ]


CASES: Final[list[Case]] = []
"""Those that may be asked at any time."""


def case(
    name: str,
    kind: str,
    make: Make,
    *,
    method: str = "ModelInfer",
    differs: str = "",
    metadata: Metadata = (),
    others: tuple[str, ...] = (),
    into: list[Case] | None = None,
) -> None:
    (CASES if into is None else into).append(
        Case(f"{method}: {name}", method, kind, make, differs, metadata, others)
    )


# --- requests -------------------------------------------------------------------------------------

Parameter = int | str | bool | float


def parameter(target: Any, name: str, value: Parameter) -> None:
    if isinstance(value, bool):
        target[name].bool_param = value
    elif isinstance(value, int):
        target[name].int64_param = value
    elif isinstance(value, float):
        target[name].double_param = value
    else:
        target[name].string_param = value


def request(
    model: str,
    inputs: Mapping[str, tuple[str, list[int], bytes]],
    *,
    version: str = "",
    id_: str = "",
    outputs: tuple[str, ...] = (),
    parameters: Mapping[str, Parameter] | None = None,
) -> Any:
    """`inputs`: type, shape and raw contents by name."""
    made = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=id_)
    for name, (datatype, shape, raw) in inputs.items():
        made.inputs.add(name=name, datatype=datatype, shape=shape)
        made.raw_input_contents.append(raw)
    for output in outputs:
        made.outputs.add(name=output)
    for key, value in (parameters or {}).items():
        parameter(made.parameters, key, value)
    return made


def fp32(*values: float) -> tuple[str, list[int], bytes]:
    return "FP32", [len(values)], np.array(values, np.float32).tobytes()


def int32(*values: int) -> tuple[str, list[int], bytes]:
    return "INT32", [len(values)], np.array(values, np.int32).tobytes()


def words(*values: bytes) -> tuple[str, list[int], bytes]:
    raw = b"".join(struct.pack("<I", len(value)) + value for value in values)
    return "BYTES", [len(values)], raw


def echo(model: str, *values: float, **more: Any) -> Any:
    return request(model, {"IN_FP32": fp32(*(values or (1.0, 2.0, 3.0)))}, **more)


def changed(make: Callable[[str], Any], change: Callable[[Any], object]) -> Make:
    def made(model: str) -> list[Any]:
        message = make(model)
        change(message)
        return [message]

    return made


def typed(datatype: str, field: str, values: list[Any], count: int | None = None) -> Make:
    def made(model: str) -> list[Any]:
        message = service_pb2.ModelInferRequest(model_name=model)
        shape = [len(values) if count is None else count]
        tensor = message.inputs.add(name=f"IN_{datatype}", datatype=datatype, shape=shape)
        getattr(tensor.contents, field).extend(values)
        return [message]

    return made


def one(make: Callable[[str], Any]) -> Make:
    return lambda model: [make(model)]


# --- ModelInfer: what is answered -----------------------------------------------------------------

case("a tensor", "echo", one(echo))
case("by number of the version", "echo", one(lambda m: echo(m, version="1")))
case("with an id", "echo", one(lambda m: echo(m, id_="a request's id, é")))
case("a large tensor", "echo", one(lambda m: echo(m, *range(1_500_000))))
case("an empty tensor", "echo", one(lambda m: request(m, {"IN_FP32": ("FP32", [0], b"")})))
case("strings", "echo", one(lambda m: request(m, {"IN_BYTES": words(b"", b"fish", b"\xff\x00")})))
case("no strings", "echo", one(lambda m: request(m, {"IN_BYTES": words()})))
case("a large string", "echo", one(lambda m: request(m, {"IN_BYTES": words(b"x" * 300_000)})))
case(
    "several types at once",
    "echo",
    one(
        lambda m: request(
            m,
            {
                "IN_FP64": ("FP64", [1], struct.pack("<d", 0.1)),
                "IN_INT8": ("INT8", [3], b"\x01\x80\xff"),
                "IN_INT64": ("INT64", [1], struct.pack("<q", -(2**63))),
                "IN_UINT16": ("UINT16", [1], b"\xff\xff"),
                "IN_BOOL": ("BOOL", [2], b"\x01\x00"),
            },
        )
    ),
)
case("typed contents: FP32", "echo", typed("FP32", "fp32_contents", [0.5, -1.0]))
case("typed contents: INT8", "echo", typed("INT8", "int_contents", [1, -1]))
case("typed contents: INT64", "echo", typed("INT64", "int64_contents", [2**40, -1]))
case("typed contents: BOOL", "echo", typed("BOOL", "bool_contents", [True, False]))
case("typed contents: BYTES", "echo", typed("BYTES", "bytes_contents", [b"a", b""]))
case(
    "some of the outputs",
    "echo",
    one(lambda m: request(m, {"IN_FP32": fp32(1.0), "IN_INT32": int32(2)}, outputs=("OUT_INT32",))),
)
case(
    "outputs in another order",
    "pair",
    one(lambda m: request(m, pair(), outputs=("PRODUCT", "SUM"))),
)
case("an output twice", "pair", one(lambda m: request(m, pair(), outputs=("SUM", "SUM"))))
case("two inputs", "pair", one(lambda m: request(m, pair())))
case(
    "parameters of every kind",
    "told",
    one(
        lambda m: request(
            m,
            {"ANY": int32(1)},
            id_="r",
            parameters={"a": 1, "b": "two", "c": True, "d": -1, "e": 0.5},
        )
    ),
)
case(
    "priority and timeout",
    "told",
    changed(
        lambda m: request(m, {"ANY": int32(1)}, parameters={"timeout": 5_000_000}),
        lambda r: setattr(r.parameters["priority"], "uint64_param", 2),
    ),
)
case(
    "headers are no parameters",
    "told",
    one(lambda m: request(m, {"ANY": int32(1)})),
    metadata=(("x-team", "search"), ("x-shoal-subject", "somebody")),
)
case(
    "a sequence's parameters for a model without sequences",
    "told",
    one(
        lambda m: request(
            m,
            {"ANY": int32(1)},
            parameters={"sequence_id": 9, "sequence_start": True, "sequence_end": True},
        )
    ),
)
case(
    "wants an empty final response",
    "echo",
    one(lambda m: echo(m, parameters={"triton_enable_empty_final_response": True})),
)
case("priority among levels", "batched", one(lambda m: batch(m, 1, priority=2)))
case("priority beyond the levels", "batched", one(lambda m: batch(m, 1, priority=7)))
case("a timeout that suffices", "batched", one(lambda m: batch(m, 1, timeout=10_000_000)))
case("a batch", "batched", one(lambda m: batch(m, 4)))
case("an empty batch", "batched", one(lambda m: batch(m, 0)))
case("classification", "batched", one(lambda m: classified(batch(m, 2), 2)))
case("classification of more than there are", "batched", one(lambda m: classified(batch(m, 1), 9)))
case("classification into none", "batched", one(lambda m: classified(batch(m, 1), 0)))
case("classification by a negative count", "batched", one(lambda m: classified(batch(m, 1), -1)))
case(
    "classification without labels",
    "pair",
    one(lambda m: classified(request(m, pair()), 1, "SUM")),
)
case("a model without an output to give", "failing", one(lambda m: failing(m, "nothing")))
case("an example", "text_stats", one(lambda m: request(m, {"TEXT": words(b"few shoals", b"")})))
case(
    "an older version of an example",
    "multiplier",
    one(lambda m: request(m, {"INPUT": ("FP32", [1, 2], bytes(8))}, version="1", id_="old")),
)
case("the newest version", "multiplier", one(lambda m: multiplied(m)))
case("an ensemble", "chain", one(lambda m: multiplied(m)), differs="encoding")
case(
    "a sequence",
    "sequence",
    lambda m: [step(m, 5, value, n == 0, n == 3) for n, value in enumerate((1, 2, 3, 4))],
)
case(
    "a sequence with a name",
    "sequence",
    lambda m: [step(m, "fish", value, n == 0, n == 2) for n, value in enumerate((1, 2, 3))],
    differs="sequence ids",
)
case("two sequences", "sequence", lambda m: [step(m, n % 2 + 7, n, n < 2, n > 3) for n in range(6)])
case(
    "a sequence begun again",
    "sequence",
    lambda m: [step(m, 9, n, n < 3, n == 3) for n in (1, 2, 3)],
)


def pair() -> dict[str, tuple[str, list[int], bytes]]:
    return {"A": fp32(1.0, 2.0), "B": ("FP32", [2, 1], bytes(8))}


def batch(model: str, size: int, **parameters: Parameter) -> Any:
    raw = np.arange(3 * size, dtype=np.float32).tobytes()
    return request(model, {"INPUT": ("FP32", [size, 3], raw)}, parameters=parameters)


def classified(message: Any, count: int, output: str = "SCORES") -> Any:
    wanted = message.outputs.add(name=output)
    wanted.parameters["classification"].int64_param = count
    return message


def failing(model: str, kind: str) -> Any:
    return request(model, {"KIND": words(kind.encode())})


def multiplied(model: str) -> Any:
    raw = np.array([[1.5, -2.0]], np.float32).tobytes()
    return request(model, {"INPUT": ("FP32", [1, 2], raw)})


def step(model: str, id_: int | str, value: int, start: bool, end: bool, **more: Parameter) -> Any:
    told: dict[str, Parameter] = {"sequence_id": id_, "sequence_start": start, "sequence_end": end}
    tensor = ("INT32", [1, 1], np.array([value], np.int32).tobytes())
    return request(model, {"INPUT": tensor}, parameters={**told, **more})


# --- ModelInfer: what is refused ------------------------------------------------------------------

case("no such model", "", one(lambda _: echo("nobody")), differs="unknown")
case(
    "no such model, with a version",
    "",
    one(lambda _: echo("nobody", version="3")),
    differs="unknown",
)
case("no name", "", one(lambda _: echo("")), differs="names")
case("a name that climbs", "", one(lambda _: echo("../echo")), differs="names")
case("no such version", "echo", one(lambda m: echo(m, version="9")), differs="unknown")
case(
    "a version that is no number",
    "echo",
    one(lambda m: echo(m, version="newest")),
    differs="unknown",
)
case("a version below 1", "echo", one(lambda m: echo(m, version="-1")), differs="versions")
case("version 0", "echo", one(lambda m: echo(m, version="0")), differs="versions")
case(
    "a version with a zero before it",
    "echo",
    one(lambda m: echo(m, version="01")),
    differs="versions",
)
case(
    "a version beyond 64 bits", "echo", one(lambda m: echo(m, version="9" * 30)), differs="versions"
)
case("an unknown input", "echo", one(lambda m: request(m, {"IN_NONE": fp32(1.0)})))
case("an input twice", "echo", changed(echo, lambda r: r.inputs.append(r.inputs[0])))
case("no input", "echo", one(lambda m: request(m, {})))
case("an unknown output", "echo", one(lambda m: echo(m, outputs=("OUT_NONE",))))
case("no datatype", "echo", changed(echo, lambda r: r.inputs[0].ClearField("datatype")))
case(
    "an unknown datatype", "echo", changed(echo, lambda r: setattr(r.inputs[0], "datatype", "FP7"))
)
case("another datatype", "echo", one(lambda m: request(m, {"IN_FP32": int32(1)})))
case(
    "a negative dimension", "echo", one(lambda m: request(m, {"IN_FP32": ("FP32", [-1], bytes(4))}))
)
case("no shape", "echo", one(lambda m: request(m, {"IN_FP32": ("FP32", [], bytes(4))})))
case(
    "a shape beyond all memory",
    "echo",
    one(lambda m: request(m, {"IN_FP32": ("FP32", [2**62], bytes(4))})),
    differs="shapes",
)
case(
    "a dimension too many",
    "echo",
    one(lambda m: request(m, {"IN_FP32": ("FP32", [1, 1], bytes(4))})),
)
case("too few bytes", "echo", one(lambda m: request(m, {"IN_FP32": ("FP32", [2], bytes(4))})))
case("too many bytes", "echo", one(lambda m: request(m, {"IN_FP32": ("FP32", [1], bytes(8))})))
case(
    "bytes of a broken string",
    "echo",
    one(lambda m: request(m, {"IN_BYTES": ("BYTES", [1], b"\xff\xff\xff\xff")})),
)
case("too few tensors", "echo", changed(echo, lambda r: r.ClearField("raw_input_contents")))
case("too many tensors", "echo", changed(echo, lambda r: r.raw_input_contents.append(b"more")))
case(
    "raw and typed contents",
    "echo",
    changed(echo, lambda r: r.inputs[0].contents.fp32_contents.append(1)),
)
case("too few typed contents", "echo", typed("FP32", "fp32_contents", [1.0], 2))
case("typed contents of another type", "echo", typed("FP32", "int_contents", [1], 1))
case("a missing input", "pair", one(lambda m: request(m, {"A": fp32(1.0, 2.0)})))
case("a fixed dimension", "pair", one(lambda m: request(m, {**pair(), "A": fp32(1.0)})))
case("too large a batch", "batched", one(lambda m: batch(m, 5)))
case("no batch dimension", "batched", one(lambda m: request(m, {"INPUT": fp32(1, 2, 3)})))
case(
    "a classification that is no number",
    "batched",
    changed(
        lambda m: classified(batch(m, 1), 1),
        lambda r: setattr(r.outputs[0].parameters["classification"], "string_param", "x"),
    ),
)
case("a priority that is no number", "batched", one(lambda m: batch(m, 1, priority="high")))
case("a timeout that is no number", "batched", one(lambda m: batch(m, 1, timeout="soon")))
case(
    "a shared memory region that there is not", "echo", changed(echo, lambda r: shared(r, "nobody"))
)
case("the model raises", "failing", one(lambda m: failing(m, "raise")), differs="paths")
for code in (
    "INTERNAL",
    "NOT_FOUND",
    "INVALID_ARG",
    "ALREADY_EXISTS",
    "UNSUPPORTED",
    "UNKNOWN",
    "CANCELLED",
):
    case(f"the model's own error, {code}", "failing", one(partial(failing, kind=code)))
case("the model's own error, UNAVAILABLE", "failing", one(lambda m: failing(m, "UNAVAILABLE")))
case("a decoupled model", "decoupled", one(lambda m: counted(m, 1)))
case("a sequence without its start", "sequence", one(lambda m: step(m, 77, 1, False, False)))
case("no sequence", "sequence", one(lambda m: step(m, 0, 1, True, False)))
case("a sequence that is true", "sequence", one(lambda m: step(m, True, 1, True, False)))
case(
    "a sequence with a name, where numbers are wanted",
    "sequence",
    one(lambda m: step(m, "salmon", 1, True, True)),
    differs="sequence ids",
)
case(
    "a start that is a number",
    "sequence",
    changed(
        lambda m: step(m, 3, 1, True, True),
        lambda r: setattr(r.parameters["sequence_start"], "int64_param", 1),
    ),
)
case(
    "a model that cannot be loaded",
    "",
    one(lambda _: request("broken", {"A": fp32(1.0)})),
    differs="not loaded",
)

# --- ModelInfer: bytes ----------------------------------------------------------------------------

case("an empty message", "", lambda _: [b""], differs="names")
case("no message", "", lambda _: [b"\x0a\xff\xff"], differs="not protobuf")
case(
    "rubbish in a tensor",
    "echo",
    one(lambda m: echo(m).SerializeToString() + b"\x2a\x02\xff\xff"),
    differs="not protobuf",
)
case("a name that is not UTF-8", "", one(lambda _: b"\x0a\x01\xff"), differs="not protobuf")
case(
    "the last name counts",
    "echo",
    one(
        lambda m: (
            echo("nobody", version="7").SerializeToString()
            + echo(m, version="1").SerializeToString()[: len(m) + 2]
            + b"\x12\x011"
        )
    ),
)
case("an unknown field", "echo", one(lambda m: echo(m).SerializeToString() + b"\x9a\x06\x03abc"))
case("fields in another order", "echo", one(lambda m: _reversed(echo(m, id_="r"))))
case(
    "a group",
    "echo",
    one(lambda m: echo(m).SerializeToString() + b"\xa3\x06\xa4\x06"),
    differs="groups",
)
case("a method that there is not", "", lambda _: [b""], method="ModelExplain", differs="methods")


def counted(model: str, count: int, **more: Any) -> Any:
    return request(model, {"COUNT": int32(count)}, **more)


def shared(message: Any, region: str) -> None:
    message.ClearField("raw_input_contents")
    told = message.inputs[0].parameters
    told["shared_memory_region"].string_param = region
    told["shared_memory_byte_size"].int64_param = 12


def _reversed(message: Any) -> bytes:
    """The same fields, the last one first."""
    return b"".join(
        type(message)(**{field.name: getattr(message, field.name)}).SerializeToString()
        for field, _ in reversed(message.ListFields())
    )


# --- ModelStreamInfer -----------------------------------------------------------------------------

EMPTY_FINAL: Final = {"triton_enable_empty_final_response": True}


def stream(name: str, kind: str, make: Make, **more: Any) -> None:
    case(name, kind, make, method=STREAM, **more)


stream("one request", "echo", one(lambda m: echo(m, id_="r")))
stream("many requests", "echo", lambda m: [echo(m, n, id_=str(n)) for n in range(20)])
stream("no request", "", lambda _: [])
stream("final responses wanted", "echo", one(lambda m: echo(m, id_="r", parameters=EMPTY_FINAL)))
stream("no such model", "", lambda _: [echo("nobody", id_="r")], differs="unknown")
stream(
    "no such version",
    "echo",
    one(lambda m: echo(m, id_="r", version="9")),
    differs="unknown",
)
stream(
    "good, bad and good",
    "echo",
    lambda m: [echo(m, 1, id_="a"), echo(m, id_="b", outputs=("NO",)), echo(m, 2, id_="c")],
    differs="refused in band",
)
stream(
    "a missing input",
    "pair",
    one(lambda m: request(m, {"A": fp32(1.0, 2.0)}, id_="r")),
    differs="refused in band",
)
stream(
    "the model's own errors",
    "failing",
    lambda m: [failing(m, "INVALID_ARG"), failing(m, "nothing")],
)
stream(
    "the model's own error, UNAVAILABLE",
    "failing",
    one(lambda m: failing(m, "UNAVAILABLE")),
)
stream("bytes that are no message", "", lambda _: [b"\x0a\xff\xff"], differs="not protobuf")
stream(
    "errors as statuses",
    "echo",
    lambda m: [echo(m, id_="a"), echo(m, id_="b", outputs=("NO",))],
    metadata=(("triton_grpc_error", "true"),),
    differs="errors as statuses",
)
for count in (0, 1, 3):
    stream(f"{count} replies", "decoupled", one(partial(counted, count=count, id_="r")))
    stream(
        f"{count} replies and a final one",
        "decoupled",
        one(partial(counted, count=count, id_="r", parameters=EMPTY_FINAL)),
    )
stream(
    "replies, then an error",
    "decoupled",
    one(lambda m: counted(m, -2, id_="r")),
)
stream(
    "replies, then an error and a final one",
    "decoupled",
    one(lambda m: counted(m, -2, id_="r", parameters=EMPTY_FINAL)),
)
stream(
    "replies to several requests",
    "decoupled",
    lambda m: [counted(m, n, id_=str(n)) for n in (2, 0, 3, 1)],
)
stream("a sequence", "sequence", lambda m: [step(m, 21, n, n == 0, n == 4) for n in range(5)])
stream(
    "a sequence without its start",
    "sequence",
    lambda m: [step(m, 78, 1, False, False)],
    differs="refused in band",
)
stream(
    "several models",
    "echo",
    lambda m: [
        echo(m, 1, id_="a"),
        multiplied("multiplier"),
        echo(m, 2, id_="b"),
        echo("nobody", id_="c"),
        multiplied("chain"),
        echo(m, 3, id_="d"),
    ],
    others=("chain", "multiplier"),
    differs="unknown",
)
stream("classification", "batched", one(lambda m: classified(batch(m, 2), 1)))
stream("an ensemble", "chain", one(multiplied))

# --- what there is --------------------------------------------------------------------------------


def message(kind: str, **fields: Any) -> Any:
    return getattr(service_pb2, f"{kind}Request")(**fields)


def about(method: str, title: str, kind: str, *, differs: str = "", **fields: Any) -> None:
    """A call about one model; `fields` may hold a version."""
    make = one(
        lambda m: message(method, name=fields.get("name", m), version=fields.get("version", ""))
    )
    case(title, kind, make, method=method, differs=differs)


for method in ("ModelReady", "ModelMetadata", "ModelConfig"):
    own = "config" if method == "ModelConfig" else ""
    about(method, "a model", "echo", differs=own)
    about(method, "a batched one", "batched", differs=own)
    about(method, "a decoupled one", "decoupled", differs=own)
    about(method, "a sequence model", "sequence", differs=own)
    about(method, "several versions", "multiplier", differs=own)
    about(method, "an older version", "multiplier", version="1", differs=own)
    about(method, "an ensemble", "chain", differs=own)
    about(method, "an example", "text_stats", differs=own)
    ready = method == "ModelReady"
    about(method, "no such model", "", name="nobody", differs="" if ready else "unknown")
    about(method, "no name", "", name="", differs="" if ready else "names")
    about(method, "no such version", "echo", version="9", differs="" if ready else "unknown")
    about(method, "a version that is no number", "echo", version="newest", differs="unknown")
    about(method, "a model that cannot be loaded", "", name="broken", differs="not loaded")

case("always", "", lambda _: [message("ServerLive")], method="ServerLive")
case("always", "", lambda _: [message("ServerReady")], method="ServerReady")
case(
    "of itself",
    "",
    lambda _: [message("ServerMetadata")],
    method="ServerMetadata",
    differs="server",
)
case("all", "", lambda _: [message("RepositoryIndex")], method="RepositoryIndex", differs="index")
case(
    "ready ones",
    "",
    lambda _: [message("RepositoryIndex", ready=True)],
    method="RepositoryIndex",
    differs="index",
)
case(
    "another repository",
    "",
    lambda _: [message("RepositoryIndex", repository_name="other")],
    method="RepositoryIndex",
    differs="index",
)

about("ModelStatistics", "a model", "text_stats", differs="statistics")
about("ModelStatistics", "several versions", "multiplier", differs="statistics")
about("ModelStatistics", "a version", "multiplier", version="1", differs="statistics")
about("ModelStatistics", "no such model", "", name="nobody", differs="unknown")
about("ModelStatistics", "no such version", "echo", version="9", differs="unknown")
case(
    "all",
    "",
    lambda _: [message("ModelStatistics")],
    method="ModelStatistics",
    differs="statistics",
)
