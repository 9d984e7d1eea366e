"""Everything that talks to the schema registry, and the schemas kept beside it."""
