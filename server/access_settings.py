"""Where the server listens, and who may come in: the part of `Settings` that is about strangers."""

from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

Network = IPv4Network | IPv6Network


class AccessSettings(BaseModel):
    """Address, API keys, and limits on what one client may take."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    config: Path | None = Field(None, description="YAML file with any of these settings.")

    api_keys: SecretStr | None = Field(
        None,
        description="API keys, one a line or separated by ';': name, scopes, key or its hash. Only "
        "as a variable: others can read a command line.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="File of API keys, one a line: name, scopes, key or its hash ('tocom key' "
        "makes them); SIGHUP reads it anew.",
    )
    allow_anonymous: bool = Field(
        False,
        description="Serve without API keys although others can reach the address; for containers "
        "that are published on loopback only, or behind something that checks keys.",
    )
    allowed_hosts: str | None = Field(
        None,
        description="Host names that clients call this server by, separated by commas; '*' allows "
        "all. Unset: with keys all, else IP addresses, localhost and names without a dot.",
    )
    trusted_proxies: str | None = Field(
        None,
        description="Addresses or networks (10.0.0.0/8), separated by commas, of proxies whose "
        "X-Forwarded-For is believed.",
    )
    rate_limit: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="Requests per second that one client (key, else address) may send; unset: any.",
    )
    rate_burst: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Requests that a client may send at once after a pause; unset: two seconds' "
        "worth.",
    )
    max_connections: int = Field(
        2048, ge=1, le=1_000_000, description="Most connections at once; beyond it: 503."
    )
    max_connections_per_client: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Most connections of one address at once, trusted proxies excepted; unset: "
        "half of max_connections.",
    )
    max_header_bytes: int = Field(
        32_768, ge=1024, le=10_000_000, description="Most bytes of a request's line and headers."
    )
    header_timeout_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Longest time for a request's line and headers to arrive.",
    )
    min_body_rate: int = Field(
        1000,
        ge=0,
        le=1_000_000_000,
        description="Bytes per second that a body must bring on average, after its first 10 s.",
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: str | None) -> str | None:
        for item in split(value):
            try:
                ip_network(item)
            except ValueError as error:
                raise ValueError(
                    f"{error}; give addresses or networks such as 10.0.0.0/8"
                ) from None
        return value

    @model_validator(mode="after")
    def _burst_needs_rate(self) -> Self:
        if self.rate_burst is not None and self.rate_limit is None:
            raise ValueError(
                f"rate_burst={self.rate_burst} has no effect without rate_limit: set both or none"
            )
        return self

    @property
    def proxy_networks(self) -> tuple[Network, ...]:
        """`trusted_proxies` as networks."""
        return tuple(ip_network(item) for item in split(self.trusted_proxies))

    @property
    def host_names(self) -> frozenset[str] | None:
        """`allowed_hosts` in lower case; None if unset."""
        if self.allowed_hosts is None:
            return None
        return frozenset(item.lower() for item in split(self.allowed_hosts))


def split(value: str | None) -> list[str]:
    """The items of a list with commas."""
    return [item.strip() for item in (value or "").split(",") if item.strip()]
