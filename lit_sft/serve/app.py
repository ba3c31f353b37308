"""The API of OpenAI over HTTP: /v1/chat/completions, /v1/completions, /v1/models, and /health."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lit_sft.errors import ConfigError, UserError, accepted
from lit_sft.generation.strategies import Strategy
from lit_sft.serve.answering import Answerer, AnswerFailedError, Piece
from lit_sft.serve.engine import QueueFullError
from lit_sft.serve.protocol import ChatRequest, Choice, CompletionRequest, Usage, Writer

MAX_BODY = 1 << 20
"""Bytes of a request."""
MAX_DISCARDED = 16 << 20
"""Bytes of a refused request that are read and thrown away, so that its client comes to read the refusal."""


def make_app(
    answerer: Answerer, models: dict[str, bool], default: Strategy, *, max_tokens: int, api_key: str | None
) -> FastAPI:
    """The application.

    Args:
        answerer: Who answers.
        models: Names that may be asked for, and whether each is the tuned model.
        default: How tokens are chosen where a request does not say.
        max_tokens: Of an answer at most.
        api_key: What a request must bring as bearer; nothing if not given.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        answerer.engine.start()
        yield
        answerer.engine.stop()

    app = FastAPI(title="lit_sft", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    _add_errors(app)
    app.add_middleware(Guard, api_key=api_key)

    @app.get("/health")
    def health() -> dict[str, Any]:
        engine = answerer.engine
        return {"status": "ok", "running": engine.num_running, "waiting": engine.num_waiting}

    @app.get("/v1/models")
    def list_models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"id": name, "object": "model", "created": 0, "owned_by": "lit_sft"} for name in models],
        }

    _add_answers(app, answerer, models, default, max_tokens)
    return app


def _add_answers(app: FastAPI, answerer: Answerer, models: dict[str, bool], default: Strategy, max_tokens: int) -> None:
    @app.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        asked.max_tokens = asked.max_completion_tokens or asked.max_tokens
        ids = answerer.conversation_ids([message.message() for message in asked.messages])
        return await reply(request, asked, ids, Writer(asked.model, is_chat=True))

    @app.post("/v1/completions")
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        return await reply(request, asked, answerer.text_ids(asked.prompt), Writer(asked.model, is_chat=False))

    async def reply(request: Request, asked: Choice, ids: list[int], writer: Writer) -> Response:
        if asked.model not in models:
            raise ConfigError(f"model {asked.model!r} is not served. {accepted(asked.model, models)}")
        strategy = asked.strategy(default)
        strategy.max_new_tokens = min(strategy.max_new_tokens, max_tokens)
        pieces = answerer.answer(ids, strategy, asked.stop_strings, is_tuned=models[asked.model])
        first = await anext(pieces)  # what is wrong with a request shows before an answer begins
        if asked.stream:
            with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
            events = _events(first, pieces, writer, len(ids), with_usage=with_usage)
            return StreamingResponse(events, media_type="text/event-stream")
        return await _whole(request, first, pieces, writer, len(ids))


async def _whole(
    request: Request, first: Piece, pieces: AsyncGenerator[Piece], writer: Writer, num_prompt: int
) -> Response:
    text, last = first.text, first
    async with aclosing(pieces):
        async for last in pieces:
            text += last.text
            if await request.is_disconnected():
                return Response(status_code=499)  # nobody reads it
    assert last.reason
    return JSONResponse(
        writer.whole(text, last.reason, Usage(prompt_tokens=num_prompt, completion_tokens=last.num_tokens))
    )


async def _events(
    first: Piece, pieces: AsyncGenerator[Piece], writer: Writer, num_prompt: int, *, with_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events: parts of the answer, its end, and [DONE]."""
    last = first
    try:
        async with aclosing(pieces):
            yield _event(writer.piece(first.text, is_first=True))
            async for last in pieces:
                if last.text:
                    yield _event(writer.piece(last.text))
    except AnswerFailedError:
        yield _event(_error("the model failed to answer", "server_error"))
        return
    yield _event(writer.piece(None, last.reason))
    if with_usage:
        yield _event(writer.usage(Usage(prompt_tokens=num_prompt, completion_tokens=last.num_tokens)))
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _error(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _fault(error: dict[str, Any]) -> str:
    place = ".".join(map(str, error["loc"][1:]))
    if not place or error["type"] == "json_invalid":
        return "the body is not read as a JSON object; send one, with the header Content-Type: application/json"
    return f"{place}: {error['msg']}"


def _add_errors(app: FastAPI) -> None:
    """Whatever is wrong is said in the form that clients of OpenAI read."""

    @app.exception_handler(UserError)
    def mistake(_: Request, error: UserError) -> Response:
        return JSONResponse(_error(str(error), "invalid_request_error"), 400)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> Response:
        return JSONResponse(_error("; ".join(map(_fault, error.errors())), "invalid_request_error"), 400)

    @app.exception_handler(QueueFullError)
    def busy(_: Request, __: QueueFullError) -> Response:
        return JSONResponse(
            _error("too many requests wait; try again", "rate_limit_error"), 429, headers={"Retry-After": "1"}
        )

    @app.exception_handler(AnswerFailedError)
    def failed(_: Request, __: AnswerFailedError) -> Response:
        return JSONResponse(_error("the model failed to answer", "server_error"), 500)


class Guard:
    """Refuses strangers, and bodies that are too long, without holding them in memory."""

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self.app = app
        self.api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        refusal = self._refusal(Request(scope)) if scope["type"] == "http" else None
        if refusal:
            # An answer while the client still sends closes the connection under it: a broken pipe, not a reason.
            await _discard_body(receive)
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if self.api_key and request.url.path != "/health" and not secrets.compare_digest(given, self.api_key.encode()):
            return JSONResponse(_error("the API key is missing or wrong", "authentication_error"), 401)
        if request.method != "POST":
            return None
        length = request.headers.get("content-length", "")
        if not length.isdigit():
            return JSONResponse(_error("the request does not say how long it is", "invalid_request_error"), 411)
        if int(length) > MAX_BODY:
            return JSONResponse(_error(f"the request has more than {MAX_BODY:,} bytes", "invalid_request_error"), 413)
        return None


async def _discard_body(receive: Receive) -> None:
    num_bytes = 0
    while num_bytes <= MAX_DISCARDED:
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if not message.get("more_body"):
            return
