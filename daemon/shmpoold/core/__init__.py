"""The pure core: events in with the time as an argument, actions out."""
