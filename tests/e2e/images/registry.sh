#!/bin/bash
# Quarkus reads its settings from the environment itself; only its image's JAVA_OPTS_APPEND is a shell's doing.
set -euo pipefail
cd /opt/registry
# shellcheck disable=SC2086  # several options
exec /opt/java/bin/java -XX:TieredStopAtLevel=1 ${JAVA_OPTS_APPEND:-} -jar quarkus-run.jar
