"""values.schema.json: closed, so that a misspelt name is refused at once. Settings have the bounds of their structs."""

from typing import Any

from deploy.helm import settings

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "array", "items": TEXT}
MAP: Schema = {"type": "object", "additionalProperties": TEXT}
VARIABLES: Schema = {
    "type": "object",
    "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}
OBJECT: Schema = {"type": "object"}
OBJECTS: Schema = {"type": "array", "items": OBJECT}
QUANTITY: Schema = {"type": ["string", "number"], "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|Mi|Gi|Ti|M|G|T)?$"}
MEMORY: Schema = {"type": "string", "pattern": "^[1-9][0-9]*[mg]$"}
OPTIONAL_MEMORY: Schema = {"type": "string", "pattern": "^([1-9][0-9]*[mg])?$"}
DURATION: Schema = {"type": "string", "pattern": "^[1-9][0-9]*(s|m|h|d)$"}
CRON: Schema = {"type": "string", "pattern": r"^(@[a-z]+|@every .+|\S+ \S+ \S+ \S+ \S+)$"}
SECRET_KEY: Schema = {"type": "string", "pattern": "^[-._a-zA-Z0-9]*$"}
NAME: Schema = {"type": "string", "pattern": "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"}
SURGE: Schema = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]+%$"}]}


def at_least(least: int, most: int | None = None) -> Schema:
    return {"type": "integer", "minimum": least} | ({} if most is None else {"maximum": most})


def closed(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def quantities() -> Schema:
    return {"type": "object", "additionalProperties": QUANTITY}


IMAGE = closed(
    {
        "registry": TEXT,
        "repository": TEXT,
        "tag": TEXT,
        "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    }
)
RESOURCES = closed({"requests": quantities(), "limits": quantities(), "claims": OBJECTS})
ACCOUNT = closed({"create": FLAG, "name": NAME, "annotations": MAP})
PROBE = closed(
    {
        "initialDelaySeconds": at_least(0),
        "periodSeconds": at_least(1),
        "timeoutSeconds": at_least(1),
        "failureThreshold": at_least(1),
        "successThreshold": at_least(1),
    }
)
SCRATCH = closed({"sizeLimit": QUANTITY})
CACHE = closed({"sizeLimit": QUANTITY, "existingClaim": NAME})
POD: dict[str, Schema] = {
    "image": IMAGE,
    "env": VARIABLES,
    "extraEnv": OBJECTS,
    "extraEnvFrom": OBJECTS,
    "extraVolumes": OBJECTS,
    "extraVolumeMounts": OBJECTS,
    "podAnnotations": MAP,
    "podLabels": MAP,
    "nodeSelector": MAP,
    "tolerations": OBJECTS,
    "affinity": OBJECT,
    "priorityClassName": NAME,
    "serviceAccount": ACCOUNT,
    "tmp": SCRATCH,
    "cache": CACHE,
}
COMMON: dict[str, Schema] = POD | {
    "topologySpreadConstraints": OBJECTS,
    "resources": RESOURCES,
    "strategy": closed({"maxSurge": SURGE, "maxUnavailable": SURGE}),
    "podDisruptionBudget": closed({"enabled": FLAG, "maxUnavailable": SURGE}),
    "probes": closed({"startup": PROBE, "liveness": PROBE, "readiness": PROBE}),
}
NOT_OF_A_JOB = ("topologySpreadConstraints", "strategy", "podDisruptionBudget", "probes")


def config(component: str) -> Schema:
    return closed(settings.own(component))


def service(component: str, more: dict[str, Schema] | None = None) -> Schema:
    own = {"enabled": FLAG, "config": config(component)}
    return closed(COMMON | own | (more or {"replicas": at_least(0, 100)}))


def bootstrap() -> Schema:
    of_a_job = {name: schema for name, schema in COMMON.items() if name not in NOT_OF_A_JOB}
    own = {"enabled": FLAG, "backoffLimit": at_least(0), "activeDeadlineSeconds": at_least(30)}
    return closed(of_a_job | own | {"config": config("bootstrap")})


def loader() -> Schema:
    scheduled = closed(
        {
            "enabled": FLAG,
            "schedule": CRON,
            "timeZone": TEXT,
            "suspend": FLAG,
            "args": TEXTS,
            "entities": TEXTS,
            "successfulRunHistoryLimit": at_least(0),
            "failedRunHistoryLimit": at_least(0),
        }
    )
    cores = {"cores": at_least(1), "coreLimit": QUANTITY, "memory": MEMORY, "memoryOverhead": OPTIONAL_MEMORY}
    own: dict[str, Schema] = {
        "config": config("loader"),
        "sparkVersion": TEXT,
        "jars": TEXT,
        "sparkConf": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
        "executorServiceAccount": ACCOUNT,
        "scratch": SCRATCH,
        "driver": closed(cores),
        "executor": closed(cores | {"instances": at_least(1)}),
        "probes": closed({"liveness": PROBE, "readiness": PROBE}),
        "stream": closed({"enabled": FLAG, "entities": TEXTS}),
        "batch": scheduled,
        "care": scheduled,
    }
    return closed(POD | own)


def credentials() -> Schema:
    def secret(*keys: str) -> Schema:
        return closed({"existingSecret": NAME} | dict.fromkeys(keys, SECRET_KEY))

    return closed(
        {
            "postgres": secret("passwordKey", "caKey"),
            "kafka": secret("passwordKey", "caKey", "certKey", "keyKey"),
            "registry": secret("passwordKey", "caKey"),
            "aws": secret("credentialsKey"),
            "sources": secret(),
            "owners": secret(),
        }
    )


def monitoring() -> Schema:
    return closed(
        {
            "podMonitor": closed({"enabled": FLAG, "interval": DURATION, "scrapeTimeout": DURATION, "labels": MAP}),
            "prometheusRule": closed({"enabled": FLAG, "labels": MAP, "runbookBaseUrl": TEXT, "grafanaUrl": TEXT}),
            "dashboards": closed({"enabled": FLAG, "namespace": NAME, "labels": MAP, "annotations": MAP}),
        }
    )


def keda() -> Schema:
    counts = ("partitions", "minReplicas", "maxReplicas", "lagThreshold", "pollingInterval")
    own: dict[str, Schema] = {name: at_least(1) for name in counts}
    own |= {"enabled": FLAG, "cooldownPeriod": at_least(0), "excludePersistentLag": FLAG, "topics": TEXTS}
    return closed(own)


def whole() -> Schema:
    port: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the chart tidemark"} | closed(
        {
            "global": OBJECT,  # Helm puts it there for charts that contain this one
            "nameOverride": NAME,
            "fullnameOverride": NAME,
            "image": closed(
                {
                    "registry": TEXT,
                    "repository": TEXT,
                    "tag": TEXT,
                    "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
                    "pullSecrets": TEXTS,
                }
            ),
            "config": closed(settings.common()),
            "aws": closed({"region": TEXT, "endpointUrl": TEXT}),
            "credentials": credentials(),
            "entities": closed(
                {
                    "files": {
                        "type": "object",
                        "propertyNames": {"pattern": r"^[-._a-zA-Z0-9]+\.(yaml|avsc|sql)$"},
                        "additionalProperties": TEXT,
                    },
                    "existingConfigMap": NAME,
                    "revision": TEXT,
                }
            ),
            "podSecurity": closed({name: at_least(1) for name in ("runAsUser", "runAsGroup", "fsGroup")}),
            "graceExtraSeconds": at_least(10),
            "common": closed(COMMON),
            "pollerProducer": service("pollerProducer"),
            "s3Sink": service("s3Sink"),
            "dynamoRetrier": service("dynamoRetrier"),
            "staleNotifier": service("staleNotifier"),
            "audit": service("audit", {"period": DURATION, "args": TEXTS}),
            "bootstrap": bootstrap(),
            "loader": loader(),
            "keda": keda(),
            "monitoring": monitoring(),
            "networkPolicy": closed(
                {
                    "enabled": FLAG,
                    "metricsFrom": OBJECTS,
                    "extraEgress": OBJECTS,
                    "kubernetesApiPorts": {"type": "array", "items": port},
                }
            ),
            "extraObjects": {"type": "array", "items": {"type": ["object", "string"]}},
        }
    )
