"""The local stack: real servers on loopback, without Docker, for the demo, the tests and the benchmarks alike.

Standard library only: it runs before any environment exists.
"""
