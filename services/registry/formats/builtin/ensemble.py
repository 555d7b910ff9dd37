"""Triton's ensembles: a config that names the models they are made of, and no file."""

from typing import Final

from services.registry.formats.artifact import Artifact
from services.registry.formats.config import CONFIG_FILE, parse_config
from services.registry.formats.ensembles import check_ensemble, is_ensemble
from services.registry.formats.format import Described
from services.registry.formats.refusal import Refusal, Unservable

name = "ensemble"
backend = "ensemble"
runs_code = ""

_MAX_CONFIG: Final = 4 * 2**20  # bytes


def detect(artifact: Artifact) -> bool:
    text = artifact.read(CONFIG_FILE, _MAX_CONFIG)
    try:
        return b"ensemble" in text and is_ensemble(parse_config(text))
    except Unservable:
        return False


def validate(artifact: Artifact) -> Described:
    try:
        config = parse_config(artifact.text(CONFIG_FILE, _MAX_CONFIG))
        check_ensemble(config)
    except Unservable as error:
        raise Refusal(str(error)) from None
    steps = config.ensemble_scheduling.step
    return Described(notes=(f"made of {', '.join(step.model_name for step in steps)}",))
