#!/bin/bash
# Apache's own image, as far as our Compose file uses it: each KAFKA_SOME_NAME is the setting some.name, CLUSTER_ID the
# id under which an empty log folder is formatted, KAFKA_HEAP_OPTS the heap.
set -euo pipefail
settings=/tmp/server.properties
while IFS='=' read -r name value; do
    case "$name" in
        KAFKA_HEAP_OPTS) ;;
        KAFKA_*) name="${name#KAFKA_}" && name="${name,,}" && echo "${name//_/.}=$value" ;;
    esac
done < <(env) > "$settings"
java=(/opt/java/bin/java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dlog4j2.configurationFile=/opt/log4j2.properties
    -cp "/opt/kafka/*")
"${java[@]}" kafka.tools.StorageTool format -t "$CLUSTER_ID" -c "$settings" --ignore-formatted
# shellcheck disable=SC2086  # several options
exec "${java[@]}" ${KAFKA_HEAP_OPTS:-} kafka.Kafka "$settings"
