"""Which of a model's version folders its config offers.

Without a version_policy all are offered; Triton then offers only the highest. An explicit policy
means what it means to Triton.
"""

from collections.abc import Collection

from tritonclient.grpc.model_config_pb2 import ModelVersionPolicy


def offered(policy: ModelVersionPolicy, folders: Collection[int]) -> list[int]:
    """Return the versions among `folders` that the policy offers, in ascending order."""
    numbers = sorted(folders)
    match policy.WhichOneof("policy_choice"):
        case "specific":
            return [number for number in numbers if number in policy.specific.versions]
        case "latest":
            count = policy.latest.num_versions
            return numbers[-count:] if count else []
    return numbers


def why_left_out(policy: ModelVersionPolicy, number: int, folders: Collection[int]) -> str:
    """Return why the policy does not offer the version in folder `number`, or ""."""
    chosen = offered(policy, folders)
    if policy.WhichOneof("policy_choice") is None or number in chosen:
        return ""
    if not chosen:
        return "at least one version must be available under the version policy of the model"
    listed = ", ".join(map(str, chosen))
    return f"the version_policy in its config.pbtxt leaves it out and offers only {listed}"


def missing(policy: ModelVersionPolicy, folders: Collection[int]) -> list[int]:
    """Return the versions that a `specific` policy names, but that have no folder."""
    return sorted({*policy.specific.versions} - {*folders})
