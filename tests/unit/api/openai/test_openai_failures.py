"""OpenAI's audio API: errors, and the bounds of uploads."""

import openai
import pytest

from api.errors import STATUS
from speech.errors import (
    AudioTooLong,
    EngineFailed,
    ModelNotInstalled,
    Overloaded,
    SpeechError,
    UnsupportedAudio,
)
from speech.transcript import Transcript
from tests.unit.fake_service import app_of
from tests.unit.openai_service import FILE, TEXT, TRANSCRIPT, problem, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")


MODEL_ERRORS = ("model_not_found", "model_not_installed")


async def test_a_model_that_was_not_fetched_is_not_asked_for_again(api, service):
    service.answer = ModelNotInstalled("fetch it with `make models-pull`", "/srv/models/turbo")
    with pytest.raises(openai.NotFoundError) as raised:
        await api.sdk.with_options(max_retries=2).audio.transcriptions.create(
            file=FILE, model="whisper-1"
        )
    assert len(service.calls) == 1
    assert (raised.value.code, raised.value.param) == ("model_not_installed", "model")
    assert "make models-pull" in raised.value.message
    assert "/srv" not in raised.value.response.text


@pytest.mark.parametrize("code", STATUS)
async def test_every_error_of_the_family_has_openais_shape(api, service, code):
    kind = next(kind for kind in _family() if kind.code == code)
    service.answer = kind("what went wrong")
    answer = await api.post()
    error = problem(answer)
    expected = {415: 400, 422: 400}.get(STATUS[code], STATUS[code])
    assert answer.status_code == (404 if code in MODEL_ERRORS else expected)
    assert error["code"] == code
    server = answer.status_code >= 500
    assert error["type"] == ("server_error" if server else "invalid_request_error")
    assert ("Retry-After" in answer.headers) == (answer.status_code == 503)


def _family() -> list[type[SpeechError]]:
    kinds = [SpeechError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return kinds


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UnsupportedAudio("x"), openai.BadRequestError),
        (AudioTooLong("x"), openai.APIStatusError),
        (EngineFailed("x"), openai.InternalServerError),
        (Overloaded("x", retry_after_s=7), openai.InternalServerError),
    ],
)
async def test_openais_client_raises_its_own_errors(api, service, error, expected):
    service.answer = error
    with pytest.raises(expected) as raised:
        await api.transcribe()
    assert raised.value.code == error.code
    assert raised.value.request_id == raised.value.response.headers["x-request-id"]


async def test_openais_client_retries_after_the_time_it_was_given(api, service):
    async def answer() -> Transcript:
        if len(service.calls) == 1:
            raise Overloaded("full", retry_after_s=0.1)
        return TRANSCRIPT

    service.answer = answer
    assert (await api.sdk.with_options(max_retries=1).audio.transcriptions.create(
        file=FILE, model="whisper-1"
    )).text == TEXT  # fmt: skip
    assert len(service.calls) == 2


async def test_every_answer_has_a_request_id(api):
    answer = await api.sdk.audio.transcriptions.with_raw_response.create(
        file=FILE, model="whisper-1", extra_headers={"X-Request-ID": "mine"}
    )
    assert answer.request_id == "mine"
    assert len((await api.post(model="gpt-9")).headers["x-request-id"]) == 32


async def test_an_empty_file_is_refused(api, service):
    answer = await api.http.post(
        "/audio/transcriptions", files={"file": ("a", b"")}, data={"model": "whisper-1"}
    )
    assert (answer.status_code, problem(answer)["code"]) == (400, "empty_audio")
    assert service.calls == []


@pytest.mark.parametrize(("method", "status"), [("GET", 405), ("POST", 404)])
async def test_unknown_paths_and_methods_have_openais_shape(api, method, status):
    path = "transcriptions" if method == "GET" else "speech"
    answer = await api.http.request(method, f"/audio/{path}")
    assert (answer.status_code, problem(answer)["type"]) == (status, "invalid_request_error")


async def test_an_upload_beyond_openais_bound_is_too_large(service):
    async with serving(service, max_openai_upload_bytes=1000) as api:
        big = {"file": ("a.wav", bytes(1001))}
        answer = await api.http.post(
            "/audio/transcriptions", files=big, data={"model": "whisper-1"}
        )
        assert (answer.status_code, problem(answer)["code"]) == (413, "audio_too_large")
        assert service.calls == []
        v1 = {"audio": ("a.wav", bytes(1001))}
        answer = await api.http.post("/process", files=v1, data={"request_json": '{"settings":{}}'})
        assert answer.status_code == 200


async def test_the_general_bound_holds_for_openais_routes_too(service):
    async with serving(service, max_upload_bytes=1000) as api:
        answer = await api.http.post("/audio/translations", files={"file": ("a", bytes(1001))})
    assert (answer.status_code, problem(answer)["code"]) == (413, "audio_too_large")


async def test_openais_own_bound_is_the_default(service):
    app = app_of(service)
    (bounds,) = [m.kwargs["max_bytes"] for m in app.user_middleware if "max_bytes" in m.kwargs]
    assert bounds["/v1/audio/"] == 25 * 1024**2


async def test_too_many_fields_are_refused(api):
    answer = await api.post(**{"keywords[]": ["x"] * 40})
    assert (answer.status_code, problem(answer)["code"]) == (400, "invalid_request")
