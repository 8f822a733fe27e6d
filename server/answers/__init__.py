"""What clients get back: images, JSON, streams of events."""
