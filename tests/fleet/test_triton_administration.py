"""Triton's administrative calls on a whole stack, by a stock client."""

import pytest

from tests.support.stack import Fleet, example, infer, refusal
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton


def resident(stack: Fleet) -> set[str]:
    """Models that the index says nothing of: they are READY on a server."""
    rows = stack.client.get_model_repository_index().models
    return {row.name for row in rows if row.state == "READY" and not row.reason}


def counts(stack: Fleet, model: str) -> dict[str, int]:
    rows = stack.client.get_inference_statistics(model).model_stats
    return {row.version: row.inference_stats.success.count for row in rows}


def test_statistics_outlive_an_unload(stack: Fleet) -> None:
    """Of what callers asked: the Controller's own probe after each load is none of theirs."""
    stack.client.load_model("text_stats")
    before = counts(stack, "text_stats")["1"]
    assert infer(stack.client, example("text_stats")) == []
    wait_until(lambda: counts(stack, "text_stats") == {"1": before + 1}, 2, "it is counted")
    stack.client.unload_model("text_stats")
    assert "text_stats" not in resident(stack)
    stack.client.load_model("text_stats")
    assert "text_stats" in resident(stack)
    assert infer(stack.client, example("text_stats")) == []
    wait_until(lambda: counts(stack, "text_stats") == {"1": before + 2}, 2, "both are counted")


def test_an_ensemble_leaves_with_its_parts_where_that_is_asked_for(stack: Fleet) -> None:
    stack.client.load_model("file_type")
    parts = {"file_features", "magika", "file_label"}
    assert parts | {"file_type"} <= resident(stack)
    code, info, text = refusal(lambda: stack.client.unload_model("magika"))
    assert info is not None, text
    assert (code, info.reason) == ("FAILED_PRECONDITION", "HELD")
    stack.client.unload_model("file_type")
    assert parts <= resident(stack)
    stack.client.load_model("file_type")
    stack.client.unload_model("file_type", unload_dependents=True)
    assert not (parts | {"file_type"}) & resident(stack)


def test_settings_are_read_and_written(stack: Fleet) -> None:
    assert stack.client.get_trace_settings().settings["trace_mode"].value == ["opentelemetry"]
    before = stack.client.get_log_settings().settings["log_verbose_level"].uint32_param
    reply = stack.client.update_log_settings({"log_verbose_level": before + 1})
    assert reply.settings["log_verbose_level"].uint32_param == before + 1
    reply = stack.client.update_log_settings({"log_verbose_level": before})
    assert reply.settings["log_verbose_level"].uint32_param == before
