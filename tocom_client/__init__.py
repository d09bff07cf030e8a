"""Talk to a ToCom server from Python: `Client`, or `AsyncClient` on an event loop.

    from tocom_client import Client

    with Client("http://127.0.0.1:8000") as client:
        print(client.classify("photo.jpg", deadline_s=2).top.label)

The package needs httpx and nothing else; it neither imports nor needs the server or PyTorch.
"""

from tocom_client.async_client import AsyncClient
from tocom_client.classifying import Outcome, Progress
from tocom_client.client import Client
from tocom_client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    InvalidImage,
    InvalidParameter,
    NotReady,
    Overloaded,
    RateLimited,
    Refused,
    ReloadFailed,
    ReloadInProgress,
    ServerFailed,
    TocomClientError,
    Unauthorized,
    UnexpectedAnswer,
)
from tocom_client.results import (
    BankInfo,
    Classification,
    CompressionStatus,
    Level,
    LiveAgreement,
    ModelInfo,
    Prediction,
    Problem,
    ReloadStatus,
    ShadowDecision,
    Switch,
)
from tocom_client.retrying import NEVER, PATIENT, RetryBudget, RetryPolicy

__all__ = [
    "NEVER",
    "PATIENT",
    "AsyncClient",
    "BankInfo",
    "Classification",
    "Client",
    "CompressionStatus",
    "ConnectionFailed",
    "DeadlineExceeded",
    "InvalidImage",
    "InvalidParameter",
    "Level",
    "LiveAgreement",
    "ModelInfo",
    "NotReady",
    "Outcome",
    "Overloaded",
    "Prediction",
    "Problem",
    "Progress",
    "RateLimited",
    "Refused",
    "ReloadFailed",
    "ReloadInProgress",
    "ReloadStatus",
    "RetryBudget",
    "RetryPolicy",
    "ServerFailed",
    "ShadowDecision",
    "Switch",
    "TocomClientError",
    "Unauthorized",
    "UnexpectedAnswer",
]
