"""What the guard and the connection's limits add to the OpenAPI document.

They stand in front of all operations, so they are written down here for all of them, whoever adds
one: which key it wants, and which problems it can meet before it is reached.
"""

from collections.abc import Sequence
from typing import Any

from server.errors import (
    BadRequest,
    CrossSite,
    HeadersTooLarge,
    MissingScope,
    RateLimited,
    ServeError,
    SlowRequest,
    TooManyConnections,
    Unauthorized,
    UnknownHost,
    UriTooLong,
)
from server.problems import documented, speaks_inference_protocol
from server.scopes import wanted_scopes

_METHODS = frozenset({"get", "put", "post", "delete", "patch", "head", "options"})

_ANYWHERE: tuple[type[ServeError], ...] = (
    *(BadRequest, CrossSite, SlowRequest, UriTooLong, UnknownHost, HeadersTooLarge),
    TooManyConnections,
)
_WHERE_KEYS_ARE_WANTED: tuple[type[ServeError], ...] = (Unauthorized, MissingScope, RateLimited)

_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key of this server; the operator makes them with `tocom key`.",
    },
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def document_security(document: dict[str, Any], wants_keys: bool) -> dict[str, Any]:
    """Add security schemes, requirements and answers to all operations, in place.

    Args:
        document: the OpenAPI document.
        wants_keys: whether this server has API keys.

    Returns:
        The document.
    """
    document.setdefault("components", {})["securitySchemes"] = _SCHEMES
    for path, operations in document.get("paths", {}).items():
        for method, operation in operations.items():
            if method not in _METHODS:
                continue
            errors = _ANYWHERE
            if scopes := sorted(wanted_scopes(method.upper(), path)):
                errors += _WHERE_KEYS_ARE_WANTED
                _require(operation, scopes, wants_keys)
            answers = operation.setdefault("responses", {})
            _add_answers(answers, errors)
            if speaks_inference_protocol(path):
                _add_protocol_form(answers)
    return document


def _require(operation: dict[str, Any], scopes: Sequence[str], wants_keys: bool) -> None:
    if wants_keys:
        operation["security"] = [{"bearer": []}, {"header": []}]
    needed = f"With API keys, needs one with the scope {' or '.join(f'`{s}`' for s in scopes)}."
    operation["description"] = f"{operation.get('description', '')}\n\n{needed}".strip()


def _add_answers(responses: dict[str, Any], errors: tuple[type[ServeError], ...]) -> None:
    for status, answer in documented(*errors).items():
        there = responses.setdefault(str(status), answer)
        if there is not answer:
            there["description"] = f"{there['description']} / {answer['description']}"


def _add_protocol_form(responses: dict[str, Any]) -> None:
    """The door and the endpoints answer in the protocol's form, the connection's limits do not."""
    schema = {"schema": {"$ref": "#/components/schemas/InferenceError"}}
    for status, answer in responses.items():
        if status.startswith(("4", "5")):
            answer["content"] = {**answer.get("content", {}), "application/json": schema}
