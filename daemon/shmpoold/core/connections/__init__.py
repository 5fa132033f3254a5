"""Who is connected: hello and resume, seats, those that are away, the end of a seat."""
