"""docs/operations.md says what services can be told, and by default are."""

import re
from enum import StrEnum
from pathlib import Path

import pytest

from crucible_chassis.settings import ServiceSettings
from crucible_executor.settings import ExecutorSettings
from crucible_gateway.settings import GatewaySettings
from crucible_scheduler.settings import SchedulerSettings
from crucible_store.settings import MigrationSettings, StoreSettings

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


class Reader(StrEnum):
    """Who reads settings, as the table names them."""

    GATEWAY = "gateway"
    SCHEDULER = "scheduler"
    EXECUTOR = "executor"
    STORE = "store"
    MIGRATE = "`migrate`"


SETTINGS: dict[Reader, type[ServiceSettings]] = {
    Reader.GATEWAY: GatewaySettings,
    Reader.SCHEDULER: SchedulerSettings,
    Reader.EXECUTOR: ExecutorSettings,
    Reader.STORE: StoreSettings,
    Reader.MIGRATE: MigrationSettings,
}
ROWS = {
    name: (readers, meaning)
    for names, readers, meaning in re.findall(r"^\| (`CRUCIBLE_[^|]*) \| ([^|]*) \| (.*) \|$", PAGE, flags=re.MULTILINE)
    for name in re.findall(r"`CRUCIBLE_(\w+)`", names)
}
OF_COMMON = set(ServiceSettings.model_fields)


def test_every_settings_class_is_known_here() -> None:
    ours = {cls for cls in ServiceSettings.__subclasses__() if cls.__module__.startswith("crucible_")}
    assert ours == set(SETTINGS.values())


@pytest.mark.parametrize("reader", SETTINGS)
def test_every_setting_stands_in_the_table_with_its_default(reader: Reader) -> None:
    for name, field in SETTINGS[reader].model_fields.items():
        assert name.upper() in ROWS, f"CRUCIBLE_{name.upper()} has no row"
        readers, meaning = ROWS[name.upper()]
        if name in OF_COMMON:
            assert readers == "all"
            continue
        assert reader in readers.split(", ")
        if isinstance(field.default, str | Path) and str(field.default):
            assert f"`{field.default}`" in meaning, f"the row of CRUCIBLE_{name.upper()} lacks its default"


def test_every_row_is_a_setting_of_those_it_names() -> None:
    for name, (readers, _) in ROWS.items():
        named = SETTINGS.keys() if readers == "all" else set(readers.split(", ")) - {"client"}
        for reader in named:
            assert name.lower() in SETTINGS[Reader(reader)].model_fields, f"{reader} does not read CRUCIBLE_{name}"
