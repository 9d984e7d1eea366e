"""The lake: where its tables lie, and what their commits say about the raw rows that are in them. No Spark."""
