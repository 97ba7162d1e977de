"""The doors: WebSocket sessions, authentication, and the HTTP side door."""
