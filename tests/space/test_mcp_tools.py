"""The model for assistants: the three tools of the MCP server, and their errors."""

import base64
import io
import json

import pytest
from PIL import Image

from modeling import __version__
from stress.space_soak import SpaceClient

anyio = pytest.importorskip("anyio")
mcp = pytest.importorskip("mcp")


def data_uri(data: bytes, kind: str = "image/jpeg") -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def talk(url: str, calls: dict[str, tuple[str, dict]]) -> tuple:
    """Call tools; return what the server says of itself, its tools, and the results by the names of the calls."""
    from mcp.client.streamable_http import streamablehttp_client

    async def session():
        async with (
            streamablehttp_client(f"{url}/gradio_api/mcp/") as (reads, writes, _),
            mcp.ClientSession(reads, writes) as session,
        ):
            about = await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            return about, tools, {name: await session.call_tool(*call) for name, call in calls.items()}

    return anyio.run(session)


def test_an_assistant_can_call_the_tools(url, classifier, lesions):
    expected = classifier.predict(lesions[0])
    uploaded = SpaceClient(url).upload(lesions[0].read_bytes(), "größer als 3.jpg")["path"]
    photo = data_uri(lesions[0].read_bytes())
    large = io.BytesIO()
    Image.effect_noise((3000, 3000), 90).save(large, "PNG")
    about, tools, told = talk(
        url,
        {
            "classify": ("classify", {"photo": photo}),
            "uploaded": ("classify", {"photo": uploaded}),
            "weighted": ("classify", {"photo": photo, "priors": {"BCC": 1, "BKL": 1, "MEL": 1, "NV": 97}}),
            "large": ("classify", {"photo": data_uri(large.getvalue(), "image/png")}),
            "explain": ("explain", {"photo": photo, "diagnosis": "MEL"}),
            "batch": (
                "batch",
                {"photos": [{"name": "left arm.jpg", "photo": photo}, photo, data_uri(lesions[1].read_bytes())]},
            ),
        },
    )
    assert len(large.getvalue()) > 6_000_000  # beyond the library's own bound
    assert not told["large"].isError, told["large"].content
    assert (about.serverInfo.name, about.serverInfo.version) == ("skin-lesion", __version__)
    assert set(tools) == {"classify", "explain", "batch"}
    for tool in tools.values():
        assert "Research only" in tool.description
        assert all(one.get("description") for one in tool.inputSchema["properties"].values())
    for name in ("classify", "uploaded", "explain"):
        assert not told[name].isError, told[name].content
        answer = json.loads(told[name].content[0].text)
        assert answer == told[name].structuredContent
        assert answer["verdict"] == expected.verdict
        assert answer["operating_points"] == expected.operating_points
    assert told["weighted"].structuredContent["priors"]["NV"] == 0.97
    (image,) = [part for part in told["explain"].content if part.type == "image"]
    with Image.open(io.BytesIO(base64.b64decode(image.data))) as overlay:
        assert overlay.size == (640, 480)
    rows = {row["number"]: row for row in told["batch"].structuredContent["rows"]}
    assert [rows[number]["name"] for number in range(3)] == ["left arm.jpg", "photo-2", "photo-3"]
    for number, file in enumerate((lesions[0], *lesions[:2])):
        assert rows[number]["diagnosis"] == classifier.predict(file).diagnosis


def test_mistakes_of_an_assistant_get_sentences_that_repeat_nothing_of_the_photo(url):
    secret = "SECRET" * 30
    _, _, told = talk(
        url,
        {
            "fetches nothing": ("classify", {"photo": "http://192.0.2.1/x.jpg"}),
            "There is no photo": ("classify", {"photo": "/etc/passwd"}),
            "no photo": ("classify", {"photo": "data:image/jpeg;base64,@@@"}),
            "in base64": ("classify", {"photo": "data:image/jpeg;base64,größer"}),
            "is no photo": ("classify", {"photo": [secret]}),
            "send the path": ("explain", {}),
            "photos are missing": ("batch", {"photos": secret}),
            "The limit is 200": ("batch", {"photos": [data_uri(b"PK" + bytes(300))] * 201}),
            "There is no": ("batch", {"photos": [{"photo": 3}]}),
            "not an image": ("classify", {"photo": data_uri(secret.encode())}),
            "priors": ("classify", {"photo": data_uri(b"x"), "priors": secret}),
            "no such tool": (secret, {}),
        },
    )
    for sentence, result in told.items():
        assert result.isError
        (part,) = result.content
        assert sentence in part.text
        assert len(part.text) < 400
        assert "pydantic" not in part.text
    assert not any(secret in result.content[0].text for name, result in told.items() if name != "priors")
