"""The gateway's settings."""

from __future__ import annotations

from pydantic import Field

from crucible_chassis.settings import ServiceSettings

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


class GatewaySettings(ServiceSettings):
    """Each field is read from `CRUCIBLE_<FIELD>`."""

    http_listen: str = Field(default="127.0.0.1:8080", pattern=r"^(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):[0-9]{1,5}$")
    """host:port of the HTTP server; port 0 picks a free one."""

    scheduler_url: str = Field(default="127.0.0.1:8081", min_length=1)
    """gRPC target of the scheduler: `host:port`, `dns:///name:port`, `ipv4:a:1,b:2`."""

    store_url: str = Field(default="127.0.0.1:8082", min_length=1)
    """gRPC target of the store."""

    hosts: str = ""
    """Host names, separated by commas and without ports, that the gateway answers to; others are refused, so
    that no page of another site can reach it through a browser. Empty: localhost, 127.0.0.1, [::1] and the host it
    listens on."""

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """The names in lower case, an IPv6 address in its brackets."""
        named = [name.strip().lower() for name in self.hosts.split(",") if name.strip()]
        listen = self.http_listen.rpartition(":")[0].lower()
        return frozenset(named or (*LOCAL_HOSTS, listen))
