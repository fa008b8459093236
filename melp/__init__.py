"""Everything of MELP beside the hub files: databases, preparation, training, evaluation, conversion, the Hub."""
