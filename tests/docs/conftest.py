"""What the documents are tried on."""

from tests.server.conftest import own_service

__all__ = ["own_service"]
