"""What an event is: split, identified, judged by its contract, encoded, flattened. Pure: no I/O, no client library."""
