"""The link: the socket to the broker, and who waits at it."""
