"""Recording rules, alerts and runbooks for Prometheus, and what holds them to the code."""
