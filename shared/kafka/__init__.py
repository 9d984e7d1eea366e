"""Everything that talks to Kafka: settings, the publisher, topics, and the sink's consumer."""
