"""Settings of a process: read once at start-up from the environment, frozen, refused with one clear line when wrong."""

import sys
from typing import TypeVar

import pydantic
import pydantic_settings
from pydantic import Field

EX_CONFIG = 78
"""Exit code of a process whose settings are wrong (sysexits.h)."""


class ServiceSettings(pydantic_settings.BaseSettings):
    """What every service can be told. Each field is read from `CRUCIBLE_<FIELD>`."""

    model_config = pydantic_settings.SettingsConfigDict(env_prefix="CRUCIBLE_", frozen=True, extra="ignore")

    log_level: str = Field(default="info", pattern=r"(?i)^(debug|info|warning|error|critical)$")
    """Least severe level that is logged."""

    grace_seconds: float = Field(default=10, ge=0, le=3600)
    """Seconds that running work is given after SIGTERM."""


S = TypeVar("S", bound=ServiceSettings)


def load_settings(cls: type[S]) -> S:
    """The settings from the environment.

    A bad value ends the process: one line on stderr that names every variable at fault (never its value, which may be
    a secret), exit code 78.
    """
    try:
        return cls()
    except pydantic.ValidationError as exc:
        faults = [f"{_variable(cls, error['loc'])}: {error['msg']}" for error in exc.errors(include_input=False)]
    except pydantic_settings.SettingsError as exc:
        faults = [str(exc)]
    sys.stderr.write("bad settings: " + "; ".join(faults) + "\n")
    raise SystemExit(EX_CONFIG)


def _variable(cls: type[ServiceSettings], location: tuple[int | str, ...]) -> str:
    if not location:
        return cls.__name__
    name, *rest = (str(part) for part in location)
    variable = (cls.model_config.get("env_prefix", "") + name).upper()
    return ".".join([variable, *rest])
