"""The console at `/`: the server's models, live, for people with a browser."""
