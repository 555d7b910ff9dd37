"""The meaning of what is written on the command line."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from shoal.cli.addresses import Addresses, BadAddress, Given, NotAnnounced, find
from shoal.cli.catalogue import parse_arm, target_name
from shoal.cli.output import message_json, printable, seconds
from shoal.cli.references import (
    parse_reference,
    parse_versioned,
    server_of,
    short,
    version_of,
)
from shoal.cli.register import parse_memory
from shoal.cli.residency import parse_duration, parse_label
from shoal.cli.tensors import InputSpec, UnusableInput, lines, parse_inputs, values_json
from shoal.client.tensors import encoded
from shoal.controller.v1 import types_pb2 as controller
from shoal.registry.v1 import types_pb2 as registry
from shoal.sizes import format_size, parse_size

# --- names and amounts ----------------------------------------------------------------------------


def test_a_model_and_its_version() -> None:
    assert parse_reference("resnet") == ("resnet", "")
    assert parse_reference("resnet:2") == ("resnet", "2")
    assert parse_reference("resnet:stable") == ("resnet", "stable")
    for text in ("", ":2", "resnet:"):
        with pytest.raises(typer.BadParameter, match="MODEL"):
            parse_reference(text)
    with pytest.raises(typer.BadParameter, match="names no version"):
        parse_versioned("resnet")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("models/m", "m"),
        ("models/m/versions/2", "m:2"),
        ("models/m/aliases/stable", "m:stable"),
        ("servers/t0", "t0"),
        ("servers/t0/replicas/m:2", "m:2"),
        ("", ""),
    ],
)
def test_resource_names_in_tables(name: str, shown: str) -> None:
    assert short(name) == shown
    assert server_of("servers/t0/replicas/m:2") == "t0"
    assert version_of("models/m/versions/2") == 2


def test_declared_memory() -> None:
    assert parse_memory("ram=512MiB") == ("ram", 512 * 1024**2)
    assert parse_memory("gpu:0=1.5G") == ("gpu:0", 1_500_000_000)
    for text in ("512MiB", "=1", "ram=", "ram=lots", "ram=-1"):
        with pytest.raises(typer.BadParameter, match=r"not a size|RESOURCE=SIZE"):
            parse_memory(text)


def test_durations_as_they_are_written() -> None:
    for text, wanted in (
        *(("0", 0), ("90", 90), ("1.5", 1.5), ("500ms", 0.5), ("90s", 90), ("10m", 600)),
        *(("1h30m", 5400), ("2d", 172_800), ("1.5h", 5400), ("1m30s", 90)),
    ):
        assert parse_duration(text) == wanted
    for text in ("", "s", "-1", "10 m", "1y", "1h30", "1e3", "m10", "nan", "1" * 10):
        with pytest.raises(typer.BadParameter, match="is not a duration"):
            parse_duration(text)


def test_required_labels() -> None:
    assert parse_label("gpu=a100") == ("gpu", "a100")
    assert parse_label("a=b=c") == ("a", "b=c")
    for text in ("gpu", "=a100", "gpu=", ""):
        with pytest.raises(typer.BadParameter, match="LABEL=VALUE"):
            parse_label(text)


@given(st.integers(min_value=0, max_value=2**50))
def test_sizes_keep_three_digits(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.006)


def test_durations_of_all_lengths() -> None:
    values = (None, 0.0123, 1.26, 61, 3600 * 25)
    assert [seconds(value) for value in values] == ["", "12 ms", "1.3 s", "1m01s", "25h00m"]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("2", "models/m/versions/2"),
        ("stable", "models/m/aliases/stable"),
        ("other", "models/other"),
        ("other:3", "models/other/versions/3"),
        ("other:best", "models/other/aliases/best"),
        ("models/other/versions/3", "models/other/versions/3"),
    ],
)
def test_what_a_share_of_traffic_goes_to(target: str, name: str) -> None:
    assert parse_arm(f"{target}=5") == (target, 5)
    assert target_name("m", target, {"stable": 1}) == name


@pytest.mark.parametrize("text", ["2", "2=", "=5", "2=-1", "2=a", "2=0.5"])
def test_what_is_no_share_of_traffic(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="TARGET=WEIGHT"):
        parse_arm(text)


# --- addresses ------------------------------------------------------------------------------------


@pytest.fixture
def announcement(tmp_path: Path) -> Path:
    path = tmp_path / "stack.json"
    endpoints = {
        "router_grpc": "127.0.0.1:11",
        "controller": "127.0.0.1:12",
        "registry": "127.0.0.1:13",
        "collector_http": "127.0.0.1:14",
    }
    path.write_text(json.dumps({"state": "ready", "endpoints": endpoints}))
    return path


def test_the_usual_addresses() -> None:
    assert find(Given(), {}) == Addresses(
        router="127.0.0.1:8001",
        controller="127.0.0.1:9102",
        registry="127.0.0.1:9101",
        collector="127.0.0.1:4318",
    )


def test_what_comes_before_what(announcement: Path) -> None:
    ports = {
        "SHOAL_ROUTER_GRPC_PORT": "21",
        "SHOAL_CONTROLLER_PORT": "22",
        "SHOAL_REGISTRY_PORT": "23",
        "SHOAL_OTLP_HTTP_PORT": "24",
    }
    assert find(Given(), ports).router == "127.0.0.1:21"
    assert find(Given(), ports).collector == "127.0.0.1:24"
    announced = {**ports, "SHOAL_ANNOUNCE": str(announcement)}
    assert find(Given(), announced).router == "127.0.0.1:11"
    assert find(Given(), announced).collector == "127.0.0.1:14"
    named = {**announced, "SHOAL_ROUTER": "host:31", "SHOAL_REGISTRY": "[::1]:33"}
    assert find(Given(), named).router == "host:31"
    assert find(Given(), named).registry == "[::1]:33"
    assert find(Given(), named).controller == "127.0.0.1:12"
    assert find(Given(announce=announcement), named).router == "127.0.0.1:11"
    assert find(Given(router="host:41", announce=announcement), named).router == "host:41"


def test_a_stack_without_a_collector(announcement: Path) -> None:
    content = json.loads(announcement.read_text())
    content["endpoints"]["collector_http"] = None
    announcement.write_text(json.dumps(content))
    assert find(Given(announce=announcement), {}).collector is None
    assert find(Given(), {"SHOAL_OTLP_HTTP_PORT": "0"}).collector is None


@pytest.mark.parametrize("address", ["host", "host:", ":1", "host:0", "host:65536", "host:http"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(BadAddress, match=r"--router: .* is not HOST:PORT"):
        find(Given(router=address), {})
    with pytest.raises(BadAddress, match="SHOAL_REGISTRY: "):
        find(Given(), {"SHOAL_REGISTRY": address})


def test_a_port_that_was_picked_is_not_known() -> None:
    with pytest.raises(BadAddress, match="give --controller HOST:PORT, or --announce"):
        find(Given(), {"SHOAL_CONTROLLER_PORT": "0"})


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"endpoints": {}}', '{"endpoints": null}'])
def test_what_is_no_announcement(tmp_path: Path, content: str) -> None:
    path = tmp_path / "stack.json"
    with pytest.raises(NotAnnounced, match="start one with"):
        find(Given(announce=path), {})
    path.write_text(content)
    with pytest.raises(NotAnnounced, match="was not written by"):
        find(Given(announce=path), {})


# --- tensors in -----------------------------------------------------------------------------------

IMAGE = InputSpec("image", "FP32", (3, 2, 2))
BATCHED = InputSpec("image", "FP32", (-1, 3, 2))
OPEN = InputSpec("row", "INT64", (-1, -1))
TEXT = InputSpec("text", "BYTES", (-1,))


def read(tensor: InputSpec, *values: str) -> np.ndarray:
    texts = [f"{tensor.name}={value}" for value in values]
    return parse_inputs(texts, {tensor.name: tensor})[tensor.name]


def shape(tensor: InputSpec, *values: str) -> tuple[int, ...]:
    return read(tensor, *values).shape


def test_a_number_fills_the_tensor() -> None:
    array = read(IMAGE, "0.5")
    assert (array.shape, array.dtype) == ((3, 2, 2), np.dtype(np.float32))
    assert (array == 0.5).all()
    assert shape(BATCHED, "1") == (1, 3, 2)
    assert shape(InputSpec("x", "FP32", ()), "1") == ()


def test_a_list_takes_the_model_s_shape() -> None:
    assert shape(BATCHED, "0,1,2,3,4,5") == (1, 3, 2)
    assert shape(BATCHED, ",".join(map(str, range(12)))) == (2, 3, 2)
    assert read(OPEN, "1, 2,3").tolist() == [[1, 2, 3]]
    assert read(OPEN, "1", "2,0x10").tolist() == [[1, 2, 16]]


@pytest.mark.parametrize(
    ("datatype", "text", "value"),
    [
        ("BOOL", "true", True),
        ("UINT8", "255", 255),
        ("INT8", "-128", -128),
        ("FP16", "1e-3", np.float16(1e-3)),
        ("FP64", "inf", np.inf),
        ("BF16", "1.5", ml_dtypes.bfloat16(1.5)),
    ],
)
def test_each_datatype_has_its_numbers(datatype: str, text: str, value: object) -> None:
    array = read(InputSpec("x", datatype, (1,)), text)
    assert array.tolist() == [value]
    tensor = encoded("x", array)
    assert (tensor.datatype, len(bytes(tensor.data))) == (datatype, array.itemsize)


@pytest.mark.parametrize(
    ("tensor", "values"),
    [
        (IMAGE, ["1,2"]),
        (BATCHED, ["1,2,3,4"]),
        (IMAGE, ["a"]),
        (OPEN, ["1.5"]),
        (InputSpec("x", "UINT8", (1,)), ["256"]),
        (InputSpec("x", "BOOL", (1,)), ["maybe"]),
        (InputSpec("x", "BYTES", (2,)), ["one"]),
        (InputSpec("x", "FP32", (0,)), ["1"]),
        (InputSpec("x", "UNHEARD_OF", (1,)), ["1"]),
    ],
)
def test_values_that_do_not_fit(tensor: InputSpec, values: list[str]) -> None:
    with pytest.raises(UnusableInput, match=tensor.name):
        read(tensor, *values)


def test_text_and_files_are_elements_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_bytes(b"\x00\xff")
    array = read(TEXT, "a, b", "@@at", "=", f"@{path}", "")
    assert array.tolist() == [b"a, b", b"@at", b"=", b"\x00\xff", b""]
    assert encoded("text", array[:1]).data == b"\x04\x00\x00\x00a, b"
    assert shape(InputSpec("text", "BYTES", (-1, 1)), "a", "b") == (2, 1)
    with pytest.raises(UnusableInput, match="cannot be read: No such file"):
        read(TEXT, "@/nowhere")


def test_a_file_of_numpy_s(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones((3, 2), np.float32))
    assert shape(BATCHED, str(path)) == (1, 3, 2)
    np.save(path, np.ones((5, 3, 2), ">f4"))
    assert shape(BATCHED, str(path)) == (5, 3, 2)
    assert read(BATCHED, str(path)).dtype == np.float32
    # The server knows best what is wrong with a shape.
    np.save(path, np.ones((7,), np.float32))
    assert shape(IMAGE, str(path)) == (7,)
    np.save(path, np.array(["é", "b"]))
    assert read(TEXT, str(path)).tolist() == ["é".encode(), b"b"]
    np.save(path, np.ones((1, 3, 2), np.float32))
    assert read(BATCHED._replace(datatype="BF16"), str(path)).dtype == ml_dtypes.bfloat16


def test_a_file_of_another_type(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones((3, 2, 2)))
    with pytest.raises(UnusableInput, match=r"float64.*FP32.*astype\(numpy.float32\)"):
        read(IMAGE, str(path))
    with pytest.raises(UnusableInput, match="takes BYTES: save an array of strings"):
        read(TEXT, str(path))
    with pytest.raises(UnusableInput, match="give it alone"):
        read(IMAGE, str(path), "1")
    path.write_bytes(b"no array")
    with pytest.raises(UnusableInput, match=r"not a usable \.npy file"):
        read(IMAGE, str(path))
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(UnusableInput, match=r"not a usable \.npy file"):
        read(TEXT, str(path))
    with pytest.raises(UnusableInput, match="cannot be read"):
        read(IMAGE, str(tmp_path / "absent.npy"))


def test_what_is_no_input() -> None:
    with pytest.raises(
        UnusableInput, match=r"has no input 'other'; it takes image FP32 \[3, 2, 2\]"
    ):
        parse_inputs(["other=1"], {"image": IMAGE})
    for text in ("image", "=1", ""):
        with pytest.raises(UnusableInput, match="is not NAME=VALUE"):
            parse_inputs([text], {"image": IMAGE})


# --- out ------------------------------------------------------------------------------------------


def test_few_values_are_shown_and_of_scores_the_largest() -> None:
    assert lines(np.array([1.5, 2], np.float32)) == ["1.5, 2"]
    assert lines(np.arange(10)) == ["0, 1, 2, 3, 4, 5, 6, 7, … 2 more"]
    assert lines(np.array([], np.float32)) == [""]
    assert lines(np.array(3, np.float32)) == ["3"]
    scores = np.zeros((2, 1000), np.float32)
    scores[0, 7], scores[1, 999] = 0.75, 0.5
    first, second = lines(scores)
    assert first.startswith("the 5 largest: [7] 0.75, [0] 0, ")
    assert second.startswith("the 5 largest: [999] 0.5, ")


def test_text_is_shown_as_text() -> None:
    (shown,) = lines(np.array([b'say "\xc3\xa9"', b"\xff\n", b"x" * 500], np.object_))
    assert shown.startswith('"say \\"é\\"", "\\\\xff\\n", "xxx')
    assert shown.endswith("x…")


def test_values_as_json() -> None:
    assert values_json(np.array([[1, np.nan], [np.inf, -2]], np.float32)) == [1, None, None, -2]
    assert values_json(np.array([True])) == [True]
    assert values_json(np.array([b"\xc3\xa9", b"\xff"], np.object_)) == ["é", "\\xff"]
    assert values_json(np.array([1.5], ml_dtypes.bfloat16)) == [1.5]


def test_messages_as_json() -> None:
    replica = controller.Replica(
        state=controller.REPLICA_STATE_READY, memory_reserved={"ram": 2**40}, pinned=True
    )
    replica.idle.FromMilliseconds(1500)
    shown = message_json(replica)
    assert list(shown) == [field.name for field in controller.Replica.DESCRIPTOR.fields]
    assert (shown["state"], shown["memory_reserved"], shown["idle"]) == (
        "READY",
        {"ram": 2**40},
        1.5,
    )
    assert (shown["load_duration"], shown["held_by"], shown["pinned"]) == (None, [], True)
    model = registry.Model(traffic_policy=registry.TrafficPolicy(arms=[registry.Arm(weight=3)]))
    model.create_time.FromSeconds(0)
    shown = message_json(model)
    assert shown["traffic_policy"]["arms"] == [{"target": "", "weight": 3}]
    assert (shown["create_time"], shown["update_time"]) == ("1970-01-01T00:00:00Z", None)
    assert shown["retry_policy"] == "UNSPECIFIED"
    assert "config" not in message_json(registry.ModelVersion(config=b"\x00"))


def test_what_others_wrote_does_not_steer_the_terminal() -> None:
    assert printable("\x1b[2Ja\nb") == "·[2Ja·b"
