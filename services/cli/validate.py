"""``tidemark validate``: every problem of the entity folder, with file and line. Needs no server."""

from collections.abc import Mapping
from pathlib import Path

from services.cli.outcome import OK, Outcome, aligned
from shared.config import ConfigError
from shared.entities import Entities, load_entities
from shared.events.contract import ContractError, check_columns, compile_contract


def run(entities_dir: str | None, namespace: str, environ: Mapping[str, str] | None) -> Outcome:
    """Raises ``ConfigError``. ``environ`` None: variables that the files name are not looked at."""
    if entities_dir is None:
        raise ConfigError(["TIDEMARK_ENTITIES_DIR: not set; name the folder of *.yaml, or use --entities DIR"])
    entities = load_entities(Path(entities_dir), namespace, environ)
    general = compiled(entities)
    rows = [
        ["ok", entity.name, entity.topic, f"general path: {general[entity.name]}" if entity.name in general else ""]
        for entity in entities.entities.values()
    ]
    return Outcome(
        exit_code=OK,
        lines=aligned(rows),
        document={
            "entities": [
                {"name": entity.name, "topic": entity.topic, "general_path": general.get(entity.name)}
                for entity in entities.entities.values()
            ]
        },
    )


def compiled(entities: Entities) -> dict[str, str]:
    """Compile every schema file; why some of them run on the general path. Raises ``ConfigError`` with all refusals."""
    problems: list[str] = []
    general: dict[str, str] = {}
    for entity in entities.entities.values():
        if entity.schema_text is None:
            continue
        try:
            check_columns([entity.schema_text])
            contract = compile_contract(entity.rules, entity.schema_text, entity.schema_subject, 0)
        except ContractError as error:
            problems.append(f"{entity.schema_file}: entity {entity.name}: {error}")
        else:
            if contract.general:
                general[entity.name] = ", ".join(contract.reasons)
    if problems:
        raise ConfigError(problems)
    return general
