"""The routes of two Vosk servers: ``WS /ws`` of the sherpa-onnx one, and the classic ``WS /vosk``,
also by language as ``WS /asr/LANGUAGE``.

Both sockets take ``{"config": …}``, PCM16 of any frame size, and ``{"eof": 1}``. The answers are
described at :class:`api.compat.sherpa_socket.SherpaSocket` and
:class:`api.compat.classic_socket.ClassicSocket`.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from pydantic import BaseModel, ValidationError
from starlette.websockets import WebSocket

from api.compat.classic_socket import ClassicSocket
from api.compat.sherpa_socket import SherpaSocket
from api.compat.vosk_socket import Config
from api.errors import Problem, problem_of, render_detail, responses
from api.live.registry import LiveStreams
from api.live.websocket import serve
from configs.settings import VoskSocketSettings
from speech.errors import InvalidRequest
from speech.languages import language_code

ADVICE = "Прочти инструкцию в Schemas - 'WebSocketModel'"


class WebSocketModel(BaseModel):
    """The protocol of ``WS /ws``; this schema is here for ``/docs``.

    Send ``{"config": {"sample_rate": 16000, "wait_null_answers": true}}`` as text, then PCM s16le
    mono as binary frames of any size, then ``{"eof": 1}`` as text. Every answer is a JSON text of
    the shape below; after the one with ``last_message: true`` the server closes.
    """

    silence: bool
    data: dict[str, Any] | str
    error: str | None
    last_message: bool


def router(live: LiveStreams, settings: VoskSocketSettings) -> APIRouter:
    """The sockets, and the small HTTP routes of server B."""
    routes = APIRouter(tags=["vosk"])

    async def serve_classic(websocket: WebSocket, language: str | None) -> None:
        query = websocket.query_params
        try:
            rate = query.get("sample_rate") or settings.sample_rate
            config = Config.model_validate({"sample_rate": rate})
        except ValidationError as error:
            reason = f"sample_rate: {error.errors()[0]['msg']}"
            problem = Problem(422, "invalid_request", reason)
            await websocket.send_denial_response(render_detail(problem))
            return
        await serve(websocket, live, ClassicSocket(live, query.get("model"), config, language))

    @routes.websocket("/ws")
    async def sherpa(websocket: WebSocket, model: Annotated[str | None, Query()] = None) -> None:
        await serve(websocket, live, SherpaSocket(live, model))

    @routes.websocket("/vosk")
    async def classic(websocket: WebSocket) -> None:
        await serve_classic(websocket, None)

    @routes.websocket("/asr/{language}")
    async def of_language(websocket: WebSocket, language: str) -> None:
        try:
            code = language_code(language)
        except InvalidRequest as error:
            await websocket.send_denial_response(render_detail(problem_of(error)))
            return
        await serve_classic(websocket, code)

    if settings.root_path:
        routes.add_api_websocket_route("/", classic)

    @routes.post(
        "/ws",
        summary="The protocol of WS /ws, see the schema WebSocketModel",
        responses=responses(422),
        openapi_extra={
            "requestBody": {
                "content": {"application/json": {"schema": WebSocketModel.model_json_schema()}}
            }
        },
    )
    async def describe(body: Annotated[dict[str, Any], Body()]) -> str:
        return ADVICE

    @routes.get("/is_alive", summary="Liveness in the form of server B")
    async def is_alive() -> dict[str, Any]:
        return {"error": False, "error_description": None, "data": "is running"}

    return routes
