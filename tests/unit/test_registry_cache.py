"""Schemas outlive the registry: what was known works while it is down, and "down" never reads as "unknown"."""

from pathlib import Path

import pytest

from shared.registry.cache import SchemaCache
from shared.registry.client import RegisteredSchema, RegistryUnavailable, UnknownSchema, UnknownSubject

SUBJECT = "cdc.accounts-value"


class FakeRegistry:
    """Subjects in memory; counts what it is asked."""

    def __init__(self) -> None:
        self.down = False
        self.subjects: dict[str, list[RegisteredSchema]] = {}
        self.asked = 0

    def add(self, schema_id: int, schema: str, subject: str = SUBJECT) -> None:
        versions = self.subjects.setdefault(subject, [])
        versions.append(RegisteredSchema(subject, len(versions) + 1, schema_id, schema))

    async def schema_by_id(self, schema_id: int) -> str:
        self._answer()
        for versions in self.subjects.values():
            for version in versions:
                if version.schema_id == schema_id:
                    return version.schema
        raise UnknownSchema(schema_id)

    async def versions(self, subject: str) -> list[RegisteredSchema]:
        self._answer()
        if subject not in self.subjects:
            raise UnknownSubject(subject)
        return list(self.subjects[subject])

    def _answer(self) -> None:
        self.asked += 1
        if self.down:
            raise RegistryUnavailable("down")


@pytest.fixture
def registry() -> FakeRegistry:
    fake = FakeRegistry()
    fake.add(1, '"int"')
    fake.add(3, '"long"')
    return fake


def tear(folder: Path, content: bytes) -> None:
    (file,) = folder.rglob("ids/1.json")
    file.write_bytes(content)


def unfinished(folder: Path) -> list[Path]:
    return list(folder.rglob("*.new"))


def cache(registry: FakeRegistry, folder: Path, scope: str = "http://registry") -> SchemaCache:
    return SchemaCache(registry, folder, scope=scope)


async def test_a_known_id_is_asked_for_once(registry: FakeRegistry, tmp_path: Path) -> None:
    schemas = cache(registry, tmp_path)

    answers = [await schemas.by_id(3) for _ in range(5)]

    assert answers == ['"long"'] * 5
    assert registry.asked == 1
    assert schemas.known(3) == '"long"'
    assert schemas.known(1) is None


async def test_a_restart_works_while_the_registry_is_down(registry: FakeRegistry, tmp_path: Path) -> None:
    before = await cache(registry, tmp_path).versions(SUBJECT)
    registry.down = True
    restarted = cache(registry, tmp_path)

    assert await restarted.by_id(1) == '"int"'
    assert await restarted.versions(SUBJECT) == before
    assert (await restarted.latest(SUBJECT)).schema_id == 3


async def test_down_is_not_unknown(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.down = True
    schemas = cache(registry, tmp_path)

    with pytest.raises(RegistryUnavailable):
        await schemas.by_id(1)
    with pytest.raises(RegistryUnavailable):
        await schemas.versions(SUBJECT)
    registry.down = False
    assert await schemas.by_id(1) == '"int"'


async def test_an_unknown_id_is_believed_for_seconds_only(registry: FakeRegistry, tmp_path: Path) -> None:
    now = [100.0]
    schemas = SchemaCache(registry, tmp_path, scope="r", negative_s=5.0, monotonic=lambda: now[0])
    for _ in range(3):
        with pytest.raises(UnknownSchema):
            await schemas.by_id(9)
    assert registry.asked == 1
    registry.add(9, '"string"')

    with pytest.raises(UnknownSchema):
        await schemas.by_id(9)
    now[0] += 5.0

    assert await schemas.by_id(9) == '"string"'


async def test_a_new_version_is_seen_at_once(registry: FakeRegistry, tmp_path: Path) -> None:
    schemas = cache(registry, tmp_path)
    await schemas.versions(SUBJECT)
    registry.add(4, '"double"')

    assert (await schemas.latest(SUBJECT)).schema_id == 4


async def test_an_unknown_subject_is_not_read_from_the_disk(registry: FakeRegistry, tmp_path: Path) -> None:
    schemas = cache(registry, tmp_path)
    await schemas.versions(SUBJECT)
    registry.subjects.clear()

    with pytest.raises(UnknownSubject):
        await schemas.versions(SUBJECT)


@pytest.mark.parametrize("torn", [b"", b"{", b'{"schema_id": 1}', b'{"schema_id": 2, "schema": "x"}', b"\xff\xfe"])
async def test_a_torn_file_is_asked_for_again(registry: FakeRegistry, tmp_path: Path, torn: bytes) -> None:
    await cache(registry, tmp_path).by_id(1)
    tear(tmp_path, torn)

    assert await cache(registry, tmp_path).by_id(1) == '"int"'
    assert await cache(registry, tmp_path).by_id(1) == '"int"'


async def test_two_registries_do_not_meet_in_one_folder(registry: FakeRegistry, tmp_path: Path) -> None:
    await cache(registry, tmp_path, "http://one").by_id(1)
    other = FakeRegistry()
    other.add(1, '"bytes"')

    assert await cache(other, tmp_path, "http://two").by_id(1) == '"bytes"'


async def test_a_registry_that_was_filled_anew_is_believed(registry: FakeRegistry, tmp_path: Path) -> None:
    await cache(registry, tmp_path).versions(SUBJECT)
    anew = FakeRegistry()
    anew.add(1, '"bytes"')

    schemas = cache(anew, tmp_path)
    await schemas.versions(SUBJECT)

    assert await schemas.by_id(1) == '"bytes"'
    assert await cache(anew, tmp_path).by_id(1) == '"bytes"'


async def test_a_disk_that_can_not_be_written_costs_the_copy_only(registry: FakeRegistry, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of a folder")

    assert await cache(registry, tmp_path / "file").by_id(1) == '"int"'


async def test_no_unfinished_file_is_left(registry: FakeRegistry, tmp_path: Path) -> None:
    await cache(registry, tmp_path).versions(SUBJECT)

    assert unfinished(tmp_path) == []
