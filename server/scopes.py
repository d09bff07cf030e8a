"""Which scope of an API key each path wants.

Closed is what is not listed: a new path wants the scope `control` until it has a line here
(`tests/server/test_security.py` names those that have none).
"""

from server.api_keys import Scope

OPEN: frozenset[Scope] = frozenset()
_INFERENCE: frozenset[Scope] = frozenset({"inference"})
_CONTROL: frozenset[Scope] = frozenset({"control"})
_METRICS: frozenset[Scope] = frozenset({"metrics"})

SCOPES_OF: dict[str, dict[str, frozenset[Scope]]] = {
    "/classify": {"POST": _INFERENCE},
    "/merges": {"POST": _INFERENCE},
    "/model": {"GET": _INFERENCE},
    "/compression": {"GET": _INFERENCE | _CONTROL, "PUT": _CONTROL},
    "/models/reload": {"POST": _CONTROL},
    "/metrics": {"GET": _METRICS},
    "/events": {"GET": _METRICS},
    # The Open Inference Protocol.
    "/v2": {"GET": _INFERENCE},
    "/v2/repository/index": {"POST": _INFERENCE},
    "/v2/health/live": {"GET": OPEN},
    "/v2/health/ready": {"GET": OPEN},
    **{
        f"/v2/models/{{name}}{version}{what}": {method: _INFERENCE}
        for version in ("", "/versions/{version}")
        for what, method in (("", "GET"), ("/ready", "GET"), ("/config", "GET"), ("/infer", "POST"))
    },
    # What a browser or a load balancer asks for before anybody could give a key.
    "/": {"GET": OPEN},
    "/healthz": {"GET": OPEN},
    "/readyz": {"GET": OPEN},
    "/docs": {"GET": OPEN},
    "/docs/oauth2-redirect": {"GET": OPEN},
    "/openapi.json": {"GET": OPEN},
}

OPEN_FOLDERS = ("/console/",)
"""Below them lies what the console's page is made of: files that anybody may have."""


_MODELS = "/v2/models/"


def wanted_scopes(method: str, path: str) -> frozenset[Scope]:
    """The scopes of which a key needs one; none: the path is open to all."""
    by_method = SCOPES_OF.get(_template(path) if path.startswith(_MODELS) else path)
    if by_method is None:
        reads = method in ("GET", "HEAD")
        return OPEN if reads and path.startswith(OPEN_FOLDERS) else _CONTROL
    if method == "HEAD":
        method = "GET"
    # A method that is not there: whoever may use the path is told so by the router.
    return by_method[method] if method in by_method else frozenset().union(*by_method.values())


def _template(path: str) -> str:
    """A path below a model as it stands above: whatever the model is called."""
    steps = path.split("/")
    steps[3] = "{name}"
    if len(steps) > 5 and steps[4] == "versions":
        steps[5] = "{version}"
    return "/".join(steps)
