"""The processes: utilisation, saturation, errors."""

from deploy.grafana.board import NONE_IS_BAD, Board, Panel, Query, Row
from deploy.grafana.expressions import J, quantile, rate

_UP = Row(
    "Which processes",
    (
        Panel(
            title="Up",
            question="Does each process answer?",
            bad="Down: its log tells why; a refused configuration names every error. `tidemark status`.",
            unit="bool",
            kind="states",
            width=12,
            queries=(Query(f"min by (job, instance) (up{{{J}}})", "{{job}} {{instance}}"),),
            steps=NONE_IS_BAD,
            names=(("0", "down"), ("1", "up")),
        ),
        Panel(
            title="Versions",
            question="Which version runs where?",
            bad="Two of one service for longer than a deployment: one of them was not replaced.",
            unit="short",
            kind="stack",
            width=12,
            queries=(Query(f"sum by (service, version) (tidemark_build_info{{{J}}})", "{{service}} {{version}}"),),
        ),
        Panel(
            title="Running for",
            question="Does a process start again and again?",
            bad="Saw teeth: it crashes or is killed (memory?).",
            unit="s",
            queries=(
                Query(
                    f"time() - max by (job, instance) (tidemark_process_start_time_seconds{{{J}}})",
                    "{{job}} {{instance}}",
                ),
            ),
        ),
        Panel(
            title="Time of a request to DynamoDB, p99",
            question="How fast is DynamoDB, its wait for a lane included?",
            bad="Climbing with throttles below: the table's limits. Alone: the network, or more work than lanes.",
            unit="s",
            queries=(Query(quantile(0.99, "tidemark_dynamo_request_seconds", "job", J), "{{job}}"),),
        ),
        Panel(
            title="Throttled by DynamoDB",
            question="Does DynamoDB refuse requests for being too many?",
            bad="Any for long: the table's limits, or a hot key. Parking waits, the cursor stands.",
            unit="short",
            queries=(
                Query(
                    f"sum by (index, reason) (increase(tidemark_dynamo_throttle_total{{{J}}}[$__rate_interval]))",
                    "{{index}}: {{reason}}",
                ),
            ),
        ),
    ),
)

_USE = Row(
    "Use and saturation",
    (
        Panel(
            title="CPU",
            question="How much of a core does each process use?",
            bad="Near 1: an event loop has one core. Add replicas.",
            unit="percentunit",
            width=12,
            queries=(
                Query(
                    f"sum by (job, instance) (rate(tidemark_process_cpu_seconds_total{{{J}}}[$__rate_interval]))",
                    "{{job}} {{instance}}",
                ),
            ),
        ),
        Panel(
            title="Event loop's stall, p99",
            question="How late are timers woken?",
            bad="Above 1 s: something blocks the loop, or the CPU is throttled. Leases may be lost.",
            unit="s",
            width=12,
            queries=(
                Query(
                    "histogram_quantile(0.99, sum by (le, job, instance)"
                    f" (rate(tidemark_loop_stall_seconds_bucket{{{J}}}[$__rate_interval])))",
                    "{{job}} {{instance}}",
                ),
            ),
        ),
        Panel(
            title="Memory, resident",
            question="How much memory does each process hold?",
            bad="Climbing without end, or near the container's limit: exit code 137 is next.",
            unit="bytes",
            queries=(
                Query(
                    f"max by (job, instance) (tidemark_process_resident_memory_bytes{{{J}}})", "{{job}} {{instance}}"
                ),
            ),
        ),
        Panel(
            title="Memory, virtual",
            question="How much address space is mapped?",
            bad="Says little alone; climbing together with the resident one: a leak.",
            unit="bytes",
            queries=(
                Query(f"max by (job, instance) (tidemark_process_virtual_memory_bytes{{{J}}})", "{{job}} {{instance}}"),
            ),
        ),
        Panel(
            title="Open files, of their limit",
            question="Are connections or files leaked?",
            bad="Climbing without end: report it. Near 100 %: raise the limit.",
            unit="percentunit",
            queries=(
                Query(
                    f"max by (job, instance) (tidemark_process_open_fds{{{J}}})"
                    f" / max by (job, instance) (tidemark_process_max_fds{{{J}}})",
                    "{{job}} {{instance}}",
                ),
            ),
        ),
        Panel(
            title="Tasks of the event loop",
            question="How much is going on at once?",
            bad="Climbing without end: tasks that never end; report it.",
            unit="short",
            queries=(Query(f"max by (job, instance) (tidemark_tasks{{{J}}})", "{{job}} {{instance}}"),),
        ),
        Panel(
            title="Threads",
            question="How much is done beside the event loop?",
            bad="Climbing without end: threads that wait for ever; report it.",
            unit="short",
            queries=(Query(f"max by (job, instance) (tidemark_threads{{{J}}})", "{{job}} {{instance}}"),),
        ),
        Panel(
            title="Garbage collections",
            question="How often does Python look for garbage, of the oldest generation too?",
            bad="Many of generation 2 together with stalls: large structures are built and dropped again and again.",
            unit="cps",
            queries=(
                Query(
                    rate("tidemark_gc_collections_total", "job, generation", J), "{{job}}, generation {{generation}}"
                ),
            ),
        ),
    ),
)

RUNTIME = Board(
    uid="tidemark-runtime",
    title="Runtime: are the processes well?",
    question="Which processes run, in which version, and what do they use?",
    rows=(_UP, _USE),
    variables=("entity", "job"),
)
