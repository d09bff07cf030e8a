"""A problem document as the bytes of a whole answer, for what never became a request."""

import random
from http import HTTPStatus

from server.errors import ServeError
from server.problems import MEDIA_TYPE, problem_of


def raw_refusal(error: ServeError) -> bytes:
    """The answer to a connection that is closed after it."""
    request_id = f"{random.getrandbits(128):032x}"
    body = problem_of(error, request_id).model_dump_json().encode()
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
        f"content-type: {MEDIA_TYPE}\r\n"
        f"content-length: {len(body)}\r\n"
        f"x-request-id: {request_id}\r\n"
        "x-content-type-options: nosniff\r\n"
        "connection: close\r\n"
        "\r\n"
    )
    return head.encode() + body
