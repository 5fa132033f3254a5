"""From a request to its answer: the waiting line, the ladder, earmarks for who has waited long, recalls."""
