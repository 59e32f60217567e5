"""Server-side apply answers as a real API server answered: named cases and random ones (see ``applycases``)."""

import asyncio
from typing import Any

import orjson
import pytest

from tests.contract.applycases import ANSWERS, WIDGET_DEFINITION, WIDGET_VERSION, WIDGETS, cases, play
from tests.contract.client import Api

RECORDED: dict[str, list[dict[str, Any]]] = orjson.loads(ANSWERS.read_bytes())


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["name"].replace(" ", "-"))
async def test_apply_answers_like_a_real_api_server(api: Api, case: dict[str, Any]) -> None:
    if case["kind"] == "Widget":
        await define_widgets(api)
    answers = await play(api, case)
    for number, (step, answer, recorded) in enumerate(zip(case["steps"], answers, RECORDED[case["name"]], strict=True)):
        assert answer == recorded, f"step {number}: {step}"


async def define_widgets(api: Api) -> None:
    await api.post(api.path("apiextensions.k8s.io/v1", "customresourcedefinitions", namespace=""), WIDGET_DEFINITION)
    while (await api.get(api.path(WIDGET_VERSION, WIDGETS))).code != 200:
        await asyncio.sleep(0.1)
