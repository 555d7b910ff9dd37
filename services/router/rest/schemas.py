"""Schemas of bodies, in the terms of JSON Schema."""

from typing import Any, Final

Schema = dict[str, Any]

_ANY: Final[Schema] = {}
_TEXT: Final[Schema] = {"type": "string"}
_NUMBER: Final[Schema] = {"type": "integer"}
_FLAG: Final[Schema] = {"type": "boolean"}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _map(of: Schema) -> Schema:
    return {"type": "object", "additionalProperties": of}


def _object(required: str = "", **properties: Schema) -> Schema:
    """Return the schema of an object. `required` lists names, separated by blanks."""
    schema: Schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required.split()
    return schema


_PARAMETERS: Final = _map({"type": ["string", "integer", "number", "boolean"]})
_DATA: Final[Schema] = {"type": "array", "description": "Elements, flat or nested."}
_TENSOR: Final = _object("name datatype shape", name=_TEXT, datatype=_TEXT, shape=_list(_NUMBER))
_VALUES: Final[Schema] = {"description": "A value, or nested lists of values."}
_ROWS: Final = _list({"type": "object"})

SCHEMAS: Final[dict[str, Schema]] = {
    "Error": _object("error", error=_TEXT, reason=_TEXT),
    "InferRequest": _object(
        "inputs",
        id=_TEXT,
        parameters=_PARAMETERS,
        inputs=_list(
            _object(
                "name datatype shape",
                name=_TEXT,
                datatype=_TEXT,
                shape=_list(_NUMBER),
                parameters=_PARAMETERS,
                data=_DATA,
            )
        ),
        outputs=_list(_object("name", name=_TEXT, parameters=_PARAMETERS)),
    ),
    "InferResponse": _object(
        "model_name model_version outputs",
        id=_TEXT,
        model_name=_TEXT,
        model_version=_TEXT,
        parameters=_PARAMETERS,
        outputs=_list(
            _object(
                "name datatype shape",
                name=_TEXT,
                datatype=_TEXT,
                shape=_list(_NUMBER),
                parameters=_PARAMETERS,
                data=_DATA,
            )
        ),
    ),
    "GenerateRequest": _object(id=_TEXT, parameters=_map(_ANY)) | {"additionalProperties": True},
    "GenerateResponse": _object(
        "model_name model_version", id=_TEXT, model_name=_TEXT, model_version=_TEXT
    )
    | {"additionalProperties": True},
    "ModelMetadata": _object(
        "name versions platform inputs outputs",
        name=_TEXT,
        versions=_list(_TEXT),
        platform=_TEXT,
        inputs=_list(_TENSOR),
        outputs=_list(_TENSOR),
    ),
    "ModelConfig": {"type": "object", "description": "inference.ModelConfig of Triton."},
    "Statistics": _object("model_stats", model_stats=_ROWS),
    "ServerMetadata": _object(
        "name version extensions", name=_TEXT, version=_TEXT, extensions=_list(_TEXT)
    ),
    "TraceSetting": _object(
        trace_level=_list(_TEXT), trace_rate=_TEXT, trace_count=_TEXT, log_frequency=_TEXT
    )
    | {"additionalProperties": _TEXT},
    "LogSettings": _object(
        log_file=_TEXT,
        log_info=_FLAG,
        log_warning=_FLAG,
        log_error=_FLAG,
        log_verbose_level=_NUMBER,
        log_format=_TEXT,
    ),
    "IndexRequest": _object(ready=_FLAG),
    "Index": _list(_object("name", name=_TEXT, version=_TEXT, state=_TEXT, reason=_TEXT)),
    "LoadRequest": _object(parameters=_map(_TEXT)),
    "UnloadRequest": _object(parameters=_object(unload_dependents=_FLAG)),
    "SystemRegion": _object("key byte_size", key=_TEXT, offset=_NUMBER, byte_size=_NUMBER),
    "SystemRegions": _list(
        _object("name key", name=_TEXT, key=_TEXT, offset=_NUMBER, byte_size=_NUMBER)
    ),
    "CudaRegion": _object(
        "raw_handle byte_size device_id",
        raw_handle=_object("b64", b64=_TEXT),
        byte_size=_NUMBER,
        device_id=_NUMBER,
    ),
    "CudaRegions": _list(_object("name", name=_TEXT, device_id=_NUMBER, byte_size=_NUMBER)),
    "PredictRequest": _object(inputs=_VALUES, instances=_list(_VALUES), parameters=_PARAMETERS)
    | {"oneOf": [{"required": ["inputs"]}, {"required": ["instances"]}]},
    "PredictResponse": _object(
        "model version",
        model=_TEXT,
        version=_TEXT,
        outputs=_map(_VALUES),
        predictions=_list(_VALUES),
    ),
    "SimpleMetadata": _object(
        "name versions inputs outputs",
        name=_TEXT,
        versions=_list(_TEXT),
        platform=_TEXT,
        inputs=_list(_TENSOR),
        outputs=_list(_TENSOR),
        default_version=_TEXT,
        aliases=_map(_TEXT),
        max_batch_size=_NUMBER,
        decoupled=_FLAG,
    ),
    "Status": _object(
        "models",
        models=_list(
            _object(
                "name versions",
                name=_TEXT,
                default_version=_TEXT,
                aliases=_map(_TEXT),
                versions=_list(
                    _object(
                        "version servable resident servers reason",
                        version=_TEXT,
                        servable=_FLAG,
                        resident=_FLAG,
                        servers=_list(_TEXT),
                        reason=_TEXT,
                    )
                ),
            )
        ),
    ),
    "Health": _object(
        "status controller_connected models",
        status=_TEXT,
        controller_connected=_FLAG,
        models=_NUMBER,
    ),
    "Live": _object("live", live=_FLAG),
    "Ready": _object("ready", ready=_FLAG),
    "SimpleReady": _object("name ready", name=_TEXT, ready=_FLAG),
    "Root": _object("status docs", status=_TEXT, docs=_TEXT),
    "OpenApi": {"type": "object"},
}
