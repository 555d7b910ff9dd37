"""One artifact from detection to a config: what it is, whether it is sound, what may serve it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.registry.core import permission
from services.registry.formats import known, unknown_content
from services.registry.formats.artifact import Artifact, open_artifact
from services.registry.formats.builtin.savedmodel import FOLDER
from services.registry.formats.config import BACKENDS, CONFIG_FILE, parse_config, runs_own_code
from services.registry.formats.ensembles import check_ensemble
from services.registry.formats.format import Described, Format
from services.registry.formats.refusal import Refusal
from services.registry.formats.written import LABELS_FILE, config_pbtxt, write_config

_MAX_CONFIG: Final = 4 * 2**20  # bytes
_USUAL: Final = {filename for backend, _, filename in BACKENDS if backend != "python"}


@dataclass(frozen=True, slots=True)
class Inspected:
    """What an artifact is, and what is to be registered.

    `format` is the format's name, or "" for a backend that knows its own files. If `must_convert`,
    no server opens it as it is, and the config holds only what its user wrote. Otherwise the config
    is complete, and `folder` is where in a version's folder the artifact belongs ("" is the
    version's folder itself). `files` are to be written beside config.pbtxt. `also` are other
    formats that it looks like.
    """

    format: str
    described: Described
    config: ModelConfig
    must_convert: bool = False
    folder: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        also = (f"it also looks like {', '.join(self.also)}",) if self.also else ()
        return (*self.described.notes, *also)

    @property
    def config_text(self) -> str:
        """Return the text of its config.pbtxt."""
        return config_pbtxt(self.config)


def inspect(
    path: Path,
    *,
    scheme: str = "file",
    code_sources: Collection[str] = ("file",),
    server_versions: Mapping[str, str] | None = None,
    given: ModelConfig | None = None,
    kind: str = "KIND_AUTO",
    within: tuple[Path, ...] = (),
) -> Inspected:
    """Find out what a file, or a folder of files, is, and how it is served. Nothing of it runs.

    The artifact is a version's content: no model folder with numbered versions. `scheme` is that of
    its source, and code that comes from one of `code_sources` may run. `server_versions` are those
    of the servers, such as {"tensorrt": "10.5"}; what is not listed is not checked. `given` is what
    the user wrote; None stands for the config.pbtxt among the files. `kind` is the instance kind if
    the config gives none. Links may lead into the folders of `within`. Raises Unservable.
    """
    artifact = open_artifact(path, within)
    _check_files(artifact)
    if given is None:
        text = artifact.read(CONFIG_FILE, _MAX_CONFIG)
        given = parse_config(text) if text else ModelConfig()
    found = _detected(artifact, given)
    if not found:
        return _by_backend(artifact, given, scheme, code_sources)
    first, *others = found
    described = first.validate(artifact)
    form = known.named(described.inner) if described.inner else first
    runs = [*filter(None, [form.runs_code]), *described.code]
    if refused := permission.refusal(form.name, runs, scheme, code_sources):
        raise Refusal(refused)
    _check_versions(described, server_versions or {})
    also = tuple(one.name for one in others)
    if not form.backend:
        return Inspected(form.name, described, given, must_convert=True, also=also)
    config, labels = write_config(given, form.backend, described, kind)
    folder = FOLDER if form.name == "savedmodel" and not described.file else ""
    files = {LABELS_FILE: labels} if labels else {}
    return Inspected(form.name, described, config, folder=folder, files=files, also=also)


def _check_files(artifact: Artifact) -> None:
    for name in artifact.outside:
        raise Refusal(f"{name} is a link that leads out of the folder")
    for name in artifact.special:
        raise Refusal(f"{name} is neither a file nor a folder")


def _detected(artifact: Artifact, given: ModelConfig) -> Sequence[Format]:
    """Return the formats that recognise the artifact, the one that counts first.

    What the user's config names counts. Otherwise the order of `known` does, except that a model.py
    gives way to a file that Triton would take before it.
    """
    backend = _backend(given)
    found = [one for one in known.formats() if one.detect(artifact)]
    if backend:
        if backend == "python" and "model.py" in artifact.files:
            return [known.named("python")]
        return [one for one in found if one.backend == backend]
    if _USUAL & {name.partition("/")[0] for name in artifact.files}:
        found.sort(key=lambda one: one.backend == "python")
    return found


def _backend(given: ModelConfig) -> str:
    if given.HasField("ensemble_scheduling") or given.platform == "ensemble":
        return "ensemble"
    by_platform = {platform: backend for backend, platform, _ in BACKENDS if platform}
    return str(given.backend or by_platform.get(given.platform, ""))


def _by_backend(
    artifact: Artifact, given: ModelConfig, scheme: str, code_sources: Collection[str]
) -> Inspected:
    """Take what nothing recognises if the user's config names a backend that may. Raises
    Unservable."""
    backend = _backend(given)
    if not backend:
        raise unknown_content.refusal(artifact)
    if backend == "ensemble":
        check_ensemble(given)
        return Inspected(backend, Described(), given)
    if any(backend == one for one, _, _ in BACKENDS):
        reason = unknown_content.refusal(artifact)
        raise Refusal(
            f"config.pbtxt names the backend {backend}, which opens nothing here: {reason}"
        )
    code = [name for name in artifact.files if name.endswith((".py", ".so"))]
    runs = [f"{name} is code" for name in code[:5]] if runs_own_code(given) else []
    if refused := permission.refusal(backend, runs, scheme, code_sources):
        raise Refusal(refused)
    note = f"the backend {backend} knows its own files, and nothing else has looked into them"
    return Inspected("", Described(notes=(note,)), given)


def _check_versions(described: Described, servers: Mapping[str, str]) -> None:
    for what, version in described.needs:
        have = servers.get(what, "")
        if have and have != version:
            name = {"tensorrt": "TensorRT"}.get(what, what)
            raise Refusal(
                f"{described.file} was made with {name} {version}, and the servers have {have}: "
                f"build it with {name} {have}, or register the model that it was built from"
            )
