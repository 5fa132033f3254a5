"""What has no living publisher: publications in the broker's custody."""
