"""All routes of the HTTP port, with the functions that answer them."""

from typing import Final, NamedTuple

from services.router.rest import generate, infer, pages, v1, v2
from services.router.rest.endpoint import RouteAction

MODELS: Final = "models"
SERVER: Final = "server"
REPOSITORY: Final = "repository"
MEMORY: Final = "shared memory"
SIMPLE: Final = "simple JSON"
DESCRIPTION: Final = "metrics and documentation"

TAGS: Final = {
    MODELS: "Triton's HTTP protocol (KServe v2 and Triton's extensions): inference, and models' "
    "metadata. A version is a number or an alias; without one, the model's traffic policy decides. "
    "A model that is not loaded answers too, but later.",
    SERVER: "The Router as one very large Triton.",
    REPOSITORY: "Registered models, and loading and unloading them ahead of time.",
    MEMORY: "Tensors in memory shared by callers and servers on one host.",
    SIMPLE: "For users of small model servers: names, lists and numbers. {id} is `model`, "
    "`model:version` or `model:alias`.",
    DESCRIPTION: "This page, and metrics.",
}


class HttpRoute(NamedTuple):
    """A route."""

    name: str
    tag: str
    methods: tuple[str, ...]
    paths: tuple[str, ...]
    action: RouteAction
    summary: str
    #: The name of its body's schema in `schemas`, or "" for no body.
    takes: str = ""
    #: The name of its reply's schema in `schemas` or a media type, or "" for no body.
    gives: str = ""
    #: Whether it replies with server-sent events of that schema.
    events: bool = False
    #: Whether it answers before the Router knows where models are.
    early: bool = False


GET: Final = ("GET",)
POST: Final = ("POST",)
BOTH: Final = ("GET", "POST")


def _of_model(rest: str) -> tuple[str, ...]:
    return f"/v2/models/{{model}}{rest}", f"/v2/models/{{model}}/versions/{{version}}{rest}"


def _of_region(kind: str, verb: str) -> tuple[str, ...]:
    return f"/v2/{kind}sharedmemory/{verb}", f"/v2/{kind}sharedmemory/region/{{region}}/{verb}"


# The first route that matches answers, so the ones used most come first.
ROUTES: Final = (
    HttpRoute(
        *("infer", MODELS, POST, _of_model("/infer"), infer.infer),
        "Run inference. Tensors come in JSON, or in binary after it; the header "
        "Inference-Header-Content-Length then gives the length of the JSON.",
        *("InferRequest", "InferResponse"),
    ),
    HttpRoute(
        *("predict", SIMPLE, POST, ("/v1/models/{id}/predict", "/v1/models/{id}:predict")),
        v1.predict,
        "Run inference, with inputs by name or with a list of instances.",
        *("PredictRequest", "PredictResponse"),
    ),
    HttpRoute(
        *("ready", MODELS, GET, _of_model("/ready"), v2.model_ready),
        "200 if the model accepts requests, resident or not, else 400.",
    ),
    HttpRoute(
        *("live", SERVER, GET, ("/v2/health/live",), v2.live),
        "200 while the Router runs.",
        gives="Live",
        early=True,
    ),
    HttpRoute(
        *("serverReady", SERVER, GET, ("/v2/health/ready",), v2.ready),
        "200 once the Router knows where models are, before that 400.",
        gives="Ready",
        early=True,
    ),
    HttpRoute(
        *("generate", MODELS, POST, _of_model("/generate"), generate.generate),
        "Run inference with plain keys, each of which is an input or else a parameter.",
        *("GenerateRequest", "GenerateResponse"),
    ),
    HttpRoute(
        *("generateStream", MODELS, POST, _of_model("/generate_stream"), generate.generate_stream),
        "Like generate, with an event for each response of a decoupled model.",
        *("GenerateRequest", "GenerateResponse"),
        events=True,
    ),
    HttpRoute(
        *("allStatistics", SERVER, GET, ("/v2/models/stats",), v2.statistics),
        "Counts and durations of all models.",
        gives="Statistics",
    ),
    HttpRoute(
        *("metadata", MODELS, GET, _of_model(""), v2.model),
        "Inputs and outputs.",
        gives="ModelMetadata",
    ),
    HttpRoute(
        *("config", MODELS, GET, _of_model("/config"), v2.config),
        "The completed config.",
        gives="ModelConfig",
    ),
    HttpRoute(
        *("statistics", MODELS, GET, _of_model("/stats"), v2.statistics),
        "Counts and durations.",
        gives="Statistics",
    ),
    HttpRoute(
        *("modelTrace", MODELS, BOTH, ("/v2/models/{model}/trace/setting",), v2.trace),
        "Read or change how the model's requests are traced.",
        *("TraceSetting", "TraceSetting"),
    ),
    HttpRoute(
        *("server", SERVER, GET, ("/v2",), v2.server),
        "Name, version and extensions.",
        gives="ServerMetadata",
    ),
    HttpRoute(
        *("trace", SERVER, BOTH, ("/v2/trace/setting",), v2.trace),
        "Read or change how requests are traced.",
        *("TraceSetting", "TraceSetting"),
    ),
    HttpRoute(
        *("logging", SERVER, BOTH, ("/v2/logging",), v2.logging),
        "Read or change what servers log.",
        *("LogSettings", "LogSettings"),
    ),
    HttpRoute(
        *("index", REPOSITORY, POST),
        ("/v2/repository/index", "/v2/repository/{repository}/index"),
        v2.index,
        "All models with their versions; READY means that a version accepts requests.",
        *("IndexRequest", "Index"),
    ),
    HttpRoute(
        *("load", REPOSITORY, POST),
        (
            "/v2/repository/models/{model}/load",
            "/v2/repository/{repository}/models/{model}/load",
        ),
        v2.load,
        "Load a model before it is needed.",
        "LoadRequest",
    ),
    HttpRoute(
        *("unload", REPOSITORY, POST),
        (
            "/v2/repository/models/{model}/unload",
            "/v2/repository/{repository}/models/{model}/unload",
        ),
        v2.unload,
        "Unload a model now; the next request loads it again.",
        "UnloadRequest",
    ),
    HttpRoute(
        *("systemStatus", MEMORY, GET, _of_region("system", "status"), v2.system_status),
        "The registered regions.",
        gives="SystemRegions",
    ),
    HttpRoute(
        *("systemRegister", MEMORY, POST, _of_region("system", "register")),
        v2.system_register,
        "Register a region of POSIX shared memory.",
        "SystemRegion",
    ),
    HttpRoute(
        *("systemUnregister", MEMORY, POST, _of_region("system", "unregister")),
        v2.system_unregister,
        "Unregister one region, or all.",
    ),
    HttpRoute(
        *("cudaStatus", MEMORY, GET, _of_region("cuda", "status"), v2.cuda_status),
        "The registered regions.",
        gives="CudaRegions",
    ),
    HttpRoute(
        *("cudaRegister", MEMORY, POST, _of_region("cuda", "register"), v2.cuda_register),
        "Register a region of a GPU's memory.",
        "CudaRegion",
    ),
    HttpRoute(
        *("cudaUnregister", MEMORY, POST, _of_region("cuda", "unregister")),
        v2.cuda_unregister,
        "Unregister one region, or all.",
    ),
    HttpRoute(
        *("simpleMetadata", SIMPLE, GET, ("/v1/models/{id}/metadata",), v1.metadata),
        "Inputs, outputs, versions and aliases.",
        gives="SimpleMetadata",
    ),
    HttpRoute(
        *("status", SIMPLE, GET, ("/v1/models/status",), v1.status),
        "All models and versions: whether they are resident, and where.",
        gives="Status",
    ),
    HttpRoute(
        *("simpleReady", SIMPLE, GET, ("/v1/models/{id}",), v1.ready),
        "200 if the model accepts requests, resident or not, else 503.",
        gives="SimpleReady",
    ),
    HttpRoute(
        *("health", SIMPLE, GET, ("/v1/health",), v1.health),
        "200 once requests can be answered, before that 503.",
        gives="Health",
        early=True,
    ),
    HttpRoute(
        *("root", DESCRIPTION, GET, ("/",), pages.root),
        "Where to read on.",
        gives="Root",
        early=True,
    ),
    HttpRoute(
        *("metrics", DESCRIPTION, GET, ("/metrics",), pages.metrics),
        "Metrics for Prometheus.",
        gives="text/plain",
        early=True,
    ),
    HttpRoute(
        *("openapi", DESCRIPTION, GET, ("/openapi.json",), pages.openapi),
        "These routes as an OpenAPI document.",
        gives="OpenApi",
        early=True,
    ),
    HttpRoute(
        *("docs", DESCRIPTION, GET, ("/docs",), pages.docs),
        "These routes as a page for people.",
        gives="text/html",
        early=True,
    ),
)
