"""The six dashboards, in the order in which one drills down."""

from deploy.grafana.board import Board
from deploy.grafana.boards.home import HOME
from deploy.grafana.boards.hops import HOPS
from deploy.grafana.boards.parked import PARKED
from deploy.grafana.boards.poller import POLLER
from deploy.grafana.boards.runtime import RUNTIME
from deploy.grafana.boards.sink import SINK

BOARDS: tuple[Board, ...] = (HOME, POLLER, SINK, HOPS, PARKED, RUNTIME)
