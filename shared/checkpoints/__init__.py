"""The edge to Postgres: cursor, lease and seen entries of each entity."""
