"""The moving parts: router, user workers, committer lanes, hub. Knows neither WebSocket nor SQL."""
