"""Raw objects → Delta tables, by batch and by stream: the two Spark jobs and the one MERGE that they share."""
