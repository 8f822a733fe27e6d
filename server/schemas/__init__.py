"""Bodies of requests and answers, as they are written in JSON; one noun a file."""
